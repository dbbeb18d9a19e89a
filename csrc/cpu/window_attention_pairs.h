// The attention of one window and head in bfloat16 for instruction sets that multiply pairs: the products of panel.h.
//
// The map's elements go into the products as they are, without being widened; the weights of softmax are rounded to bfloat16,
// as PyTorch rounds them. Sums, bias, mask and softmax are float32.
#pragma once

#include "cpu/panel.h"
#include "cpu/window_attention.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

// Whether maps of this type are attended by pairs here.
#if defined(__AVX512BF16__)
template <class Stored>
constexpr bool kAttendsPairs = std::is_same_v<Stored, BFloat16>;

class PairsAttention {
  static constexpr int64_t kMostRows = kTiles ? 64 : kTileRows;  // that are multiplied together

 public:
  PairsAttention(const WindowAttentionForward& args, const WindowSizes<float>& sizes)
      : args_(args),
        sizes_(sizes),
        dim_(round_up(sizes.head_dim, kChunk)),
        q_{scratch_.take<BFloat16>(sizes.tokens * dim_), sizes.tokens * kChunk},
        k_(scratch_.take<BFloat16>(sizes.keys * dim_)),
        v_(scratch_.take<BFloat16>(sizes.keys * dim_)),
        rows_(scratch_.take<BFloat16>(kLanes<float> * dim_)),
        scores_(scratch_.take<float>(kMostRows * sizes.keys)),
        weights_{scratch_.take<BFloat16>(kMostRows * sizes.keys), kMostRows * kChunk},
        out_(scratch_.take<float>(kMostRows * dim_)) {}

  // `in` and `out`: the offsets of the window's tokens in the maps; `between(first, rows)` is called before each block of rows.
  template <class Between>
  void attend(int64_t head, const float* bias, const float* regions, const int64_t* in, const int64_t* out, Between between) {
    const int64_t channel = head * sizes_.head_dim, channels = args_.shape.num_heads * sizes_.head_dim;
    pack_q(in, channel);
    pack_k(in, channels + channel);
    pack_v(in, 2 * channels + channel);
    const int64_t blocks = divide_up(sizes_.tokens, kMostRows);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = sizes_.tokens * block / blocks, rows = sizes_.tokens * (block + 1) / blocks - first;
      between(first, rows);
      attend_rows(first, rows, bias, regions);
      for (int64_t r = 0; r < rows; ++r)
        if (out[first + r] != kPadded)
          narrow_row(out_ + r * dim_, inverses_[r], static_cast<BFloat16*>(args_.out.data) + out[first + r] + channel,
                     sizes_.head_dim);
    }
  }

 private:
  // A token's q, k or v as it lies in the map; that of a padded token is the bias.
  void read(int64_t offset, int64_t channel, BFloat16* to) const {
    if (offset != kPadded) {
      __builtin_memcpy(to, static_cast<const BFloat16*>(args_.qkv.data) + offset + channel,
                       static_cast<size_t>(sizes_.head_dim) * sizeof(BFloat16));
      return;
    }
    const float* const padding = static_cast<const float*>(args_.qkv_bias);
    for (int64_t d = 0; d < sizes_.head_dim; ++d) narrow(padding ? padding[channel + d] : 0.0f, to[d]);
  }

  void pack_q(const int64_t* in, int64_t channel) {
    for (int64_t i = 0; i < sizes_.tokens; ++i) {
      read(in[i], channel, rows_);
      for (int64_t d = 0; d < dim_; d += kChunk)
        __builtin_memcpy(q_.at + d / kChunk * q_.chunk + i * kChunk, rows_ + d, kChunk * sizeof(BFloat16));
    }
  }

  // Keys are the columns of panels, and a pair of the depth is as wide as a float.
  void pack_k(const int64_t* in, int64_t channel) {
    for (int64_t first = 0; first < sizes_.keys; first += kLanes<float>) {
      for (int64_t i = 0; i < kLanes<float>; ++i)
        if (first + i < sizes_.tokens)
          read(in[first + i], channel, rows_ + i * dim_);
        else
          clear(rows_ + i * dim_);
      float* const panel = reinterpret_cast<float*>(k_ + first / kPanel * kPanel * dim_) + first % kPanel;
      for (int64_t pair = 0; pair < dim_ / 2; pair += kLanes<float>)
        transpose_square(reinterpret_cast<const float*>(rows_) + pair, dim_ / 2, panel + pair * kPanel, kPanel);
    }
  }

  // Keys are the depth: two neighbours' channels side by side.
  void pack_v(const int64_t* in, int64_t channel) {
    for (int64_t key = 0; key < sizes_.tokens; key += 2) {
      read(in[key], channel, rows_);
      if (key + 1 < sizes_.tokens)
        read(in[key + 1], channel, rows_ + dim_);
      else
        clear(rows_ + dim_);
      for (int64_t d = 0; d < dim_; d += kLanes<float>) {
        const __m512i even = widened(rows_ + d), odd = _mm512_maskz_slli_epi32(0xffff, widened(rows_ + dim_ + d), 16);
        BFloat16* const to = v_ + d / kPanel * kPanel * sizes_.keys + key * kPanel + d % kPanel * 2;
        _mm512_storeu_si512(to, _mm512_or_si512(even, odd));
      }
    }
  }

  static __m512i widened(const BFloat16* from) {
    return _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }

  void clear(BFloat16* row) const {
    __builtin_memset(static_cast<void*>(row), 0, static_cast<size_t>(dim_) * sizeof(BFloat16));
  }

  void attend_rows(int64_t first, int64_t rows, const float* bias, const float* regions) {
    const Operand<const BFloat16> q{q_.at + first * kChunk, q_.chunk};
    for (int64_t key = 0; key < sizes_.keys; key += kPanel)
      product<BFloat16>(rows, dim_ / kChunk, q, k_ + key * dim_, {scores_ + key, sizes_.keys}, {k_, q_.at});
    for (int64_t r = 0; r < rows; r += kBlockRows)
      softmax_rows(sizes_, first + r, rows - r < kBlockRows ? rows - r : kBlockRows, scores_ + r * sizes_.keys, bias, regions,
                   inverses_ + r);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t key = 0; key < sizes_.keys; key += kLanes<float>)
        store_narrow(weights_.at + key / kChunk * weights_.chunk + r * kChunk + key % kChunk,
                     load(scores_ + r * sizes_.keys + key));
    for (int64_t d = 0; d < dim_; d += kPanel)
      product<BFloat16>(rows, sizes_.keys / kChunk, {weights_.at, weights_.chunk}, v_ + d * sizes_.keys, {out_ + d, dim_},
                        {v_, weights_.at});
  }

  const WindowAttentionForward& args_;
  const WindowSizes<float>& sizes_;  // with keys in whole panels
  int64_t dim_;                      // head_dim in whole chunks
  Scratch scratch_;
  Operand<BFloat16> q_;
  BFloat16* k_;     // [keys / 32][dim / 2][32][2]
  BFloat16* v_;     // [dim / 32][keys / 2][32][2]
  BFloat16* rows_;  // tokens as they lie in the map
  float* scores_;   // [kMostRows, keys]
  Operand<BFloat16> weights_;
  float* out_;  // [kMostRows, dim]
  float inverses_[kMostRows];
};
#else
template <class Stored>
constexpr bool kAttendsPairs = false;

class PairsAttention;
#endif

struct Nothing {  // in its place
  template <class... Arguments>
  explicit Nothing(const Arguments&...) {}
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
