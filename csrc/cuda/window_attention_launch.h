// How the launches of window attention are cut: which kernel serves a call, and into how many shares its windows go.
#pragma once
#include <algorithm>
#include <cstdint>

#include "arguments.h"
#include "geometry.h"

namespace hifuse::cuda {

// The case the kernels are tuned for, all of a window in one block of tokens; in float32 it is one like others.
inline bool is_whole(const WindowAttentionShape& s) {
  return s.window_size == 7 && s.head_dim == 32 && s.dtype != DType::float32;
}

// Whether the tokens of a window lie within 2^31 elements, whose offsets the kernels of whole windows keep in 32 bits.
template <class Pointer>
bool is_near(const WindowAttentionShape& s, const Map<Pointer>& map) {
  return (s.window_size - 1) * (map.row_stride + map.column_stride) + 3 * s.num_heads * s.head_dim < INT32_MAX / 2;
}

// What no kernel serves, or null. The launcher asks before, with better words.
inline const char* why_not(const WindowAttentionShape& s) {
  if (s.head_dim < 8 || s.head_dim > 128 || s.head_dim % 8) return "head_dim must be a multiple of 8 from 8 to 128";
  if (s.window_size < 1 || s.window_size > 16) return "window_size must be from 1 to 16";
  const int64_t side = s.window_size, rows = (s.height + side - 1) / side, columns = (s.width + side - 1) / side;
  if (s.height + side >= INT32_MAX || s.width + side >= INT32_MAX ||
      rows * columns >= (INT32_MAX - 65536) / std::max<int64_t>(s.batch, 1))
    return "the maps have more than 2^31 windows";
  return nullptr;
}

// Whether 16 bytes of a map can be moved at a time; that head_dim is a multiple of 8 is known.
template <class Pointer>
bool is_aligned(const WindowAttentionShape& s, const Map<Pointer>& map) {
  const int64_t size = s.dtype == DType::float32 ? 4 : 2;
  return reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && map.batch_stride * size % 16 == 0 &&
         map.row_stride * size % 16 == 0 && map.column_stride * size % 16 == 0;
}
inline constexpr const char* kUnaligned = "maps must begin at a multiple of 16 bytes, and their strides be multiples of it";

// Windows of any size are cut into blocks of so many tokens: fewer where a warp's accumulators would not fit its registers. The
// backward has more of them.
constexpr int block_of_tokens(bool float32, int64_t head_dim) { return float32 || head_dim > 64 ? 32 : 64; }
constexpr int backward_block_of_tokens(bool float32, int64_t head_dim) {
  return float32 && head_dim > 64 ? 16 : block_of_tokens(float32, head_dim);
}

// Into how many shares windows are cut for about `wanted` blocks of threads, of which `each` take a share: all have as many
// windows, or one fewer.
inline int shares_of(int64_t windows, int64_t each, int64_t wanted) {
  const int64_t most = std::clamp<int64_t>(wanted / std::max<int64_t>(each, 1), 1, 65535);
  const int64_t longest = std::max<int64_t>((windows + most - 1) / most, 1);
  return static_cast<int>((windows + longest - 1) / longest);
}

// Calls f.template operator()<width>() with the narrowest tile that holds a head. Each takes seconds to compile, for every
// dtype and architecture: so there are no more of them, where heads of 32 are those of the official networks.
template <class F>
auto with_head_dim(int64_t head_dim, const F& f) {
  if (head_dim <= 16) return f.template operator()<16>();
  if (head_dim <= 32) return f.template operator()<32>();
  if (head_dim <= 64) return f.template operator()<64>();
  return f.template operator()<128>();
}

// ---- The backward -------------------------------------------------------------------------------------------------------

// Which kernels run, how the windows are cut into shares, and what lies where in scratch memory, in bytes.
struct BackwardPlan {
  bool whole;  // windows are one block of tokens
  int shares, blocks, parts;
  int64_t table_parts, padding_parts, statistics, bias_sums, bytes;
};

inline BackwardPlan plan_backward(const WindowAttentionShape& s, bool whole, int multiprocessors) {
  const WindowGrid grid(s.height, s.width, s.window_size, s.shift_size);
  const int64_t windows = s.batch * grid.windows(), side = 2 * s.window_size - 1;
  const int64_t rows = backward_block_of_tokens(s.dtype == DType::float32, s.head_dim),
                blocks = whole ? 1 : (grid.tokens() + rows - 1) / rows;
  const int64_t shares = shares_of(windows, s.num_heads * blocks, int64_t(multiprocessors) * (whole ? 3 : 128 / rows));
  BackwardPlan plan{whole, static_cast<int>(shares), static_cast<int>(blocks), static_cast<int>(shares * blocks), 0, 0, 0, 0,
                    0};
  const auto take = [&](int64_t floats) {
    const int64_t at = plan.bytes;
    plan.bytes += (floats * 4 + 255) / 256 * 256;
    return at;
  };
  plan.table_parts = take(plan.parts * side * side * s.num_heads);
  plan.padding_parts = take(plan.parts * 3 * s.num_heads * s.head_dim);
  plan.statistics = take(whole ? 0 : windows * s.num_heads * blocks * 3 * rows);
  plan.bias_sums = take(whole ? 0 : plan.parts * s.num_heads * blocks * rows * rows);
  return plan;
}

}  // namespace hifuse::cuda
