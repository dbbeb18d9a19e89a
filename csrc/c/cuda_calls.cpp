// The calls of a network on a CUDA device.
#include <string>

#include "c/checks.h"
#include "c/cuda_ops.h"
#include "c/steps.h"

namespace hifuse::c {
namespace {

// The side of the weights of a block in one kernel.
int64_t room_of(int64_t channels, int64_t heads) { return channels <= 96 && heads <= 3 ? 96 : 192; }

int64_t rows_of(const hifuse_cuda_mlp_params& p) { return p.batch * p.rows; }
int64_t rows_of(const hifuse_cuda_mixer_params& p) { return p.batch * p.height * p.width; }

struct Cuda {
  using Stem = hifuse_cuda_stem_params;
  using Linear = hifuse_cuda_linear_params;
  using LocalBlock = hifuse_cuda_local_block_params;
  using GlobalBlock = hifuse_cuda_global_block_params;
  using WindowAttention = hifuse_cuda_window_attention_params;
  using GatedConcat = hifuse_cuda_gated_concat_params;
  using Mixer = hifuse_cuda_mixer_params;
  using Mlp = hifuse_cuda_mlp_params;
  static constexpr bool kSizeOfPatches = false;  // a linear is given the size of its maps

  int64_t sm90_rows = 0;  // from so many rows on, the kernel for sm_90a makes the call; 0: it does not

  void read(Reader& r, Stem& p) const {
    p.weight = r.packed("weight", product_of("weight", {2, p.channels, 16, p.in_chans}));
    p.bias = r.packed("bias", 2 * p.channels);
  }

  void read(Reader& r, Linear& p, int64_t depth) const {
    p.weight = r.packed("weight", product_of("weight", {p.columns, depth})), p.bias = r.packed("bias", p.columns);
  }

  void read(Reader& r, LocalBlock& p, int64_t channels) const {
    p.dtype = r.dtype(), p.channels = channels, p.eps = r.number("eps"), p.whole = r.flag("whole");
    p.filters = r.floats("filters", 9 * ((channels + 7) / 8 * 8));
    if (p.whole) {
      const int64_t room = room_of(channels, 1);
      p.filter_bias = r.floats("filter_bias", channels), p.bias = r.floats("bias", channels);
      p.weight = r.packed("weight", room * room);
    } else {
      p.filter_bias = r.packed("filter_bias", channels), p.bias = r.packed("bias", channels);
      p.weight = r.packed("weight", product_of("weight", {channels, channels}));
      p.ones = r.floats("ones", channels), p.zeros = r.floats("zeros", channels);
    }
  }

  void read(Reader& r, GlobalBlock& p, int64_t channels) const {
    p.shape = shape_of(r, channels), p.eps = r.number("eps");
    const int64_t heads = p.shape.num_heads, room = room_of(channels, heads), of_heads = product_of("qkv", {32, heads});
    require(r.integer("head_dim", 1, INT32_MAX) == p.shape.head_dim, "head_dim must be ", p.shape.head_dim);
    p.qkv = r.packed("qkv", product_of("qkv", {3, of_heads, room}));
    p.qkv_bias = r.floats("qkv_bias", 3 * of_heads), p.padding = r.floats("padding", 3 * of_heads);
    p.table = r.floats("table", product_of("table", {heads, 4 * 7 * 32 * 4}));
    p.weight = r.packed("weight", room * room), p.bias = r.floats("bias", channels);
  }

  void read(Reader& r, WindowAttention& p, int64_t channels) const { p.qkv_bias = r.packed_or_none("qkv_bias", channels); }

  void read(Reader& r, GatedConcat& p) const { p.filter_bias = r.floats("filter_bias", 1); }

  void read(Reader& r, Mixer& p, int64_t channels) const {
    p.dtype = r.dtype(), p.channels = channels, p.depthwise = r.flag("depthwise");
    p.weight = r.packed("weight", product_of("weight", {9, channels, p.depthwise ? 1 : channels}));
  }

  void read(Reader& r, Mlp& p) const {
    p.expand = r.packed("expand", product_of("expand", {p.hidden, p.depth})), p.expand_bias = r.packed("expand_bias", p.hidden);
    p.project = r.packed("project", product_of("project", {p.columns, p.hidden}));
    p.project_bias = r.packed("project_bias", p.columns);
  }

  template <class Params>
  static void place(Params& p, const void* x) {
    p.x = x;
  }
  static void place(Mixer& p, const void* z) { p.z = z; }

  template <class Params>
  int64_t make(Params p, const Frame& frame, const Runner* runner) const {
    if constexpr (requires { p.sm90; }) {
      p.sm90 = sm90_rows > 0;
      if (p.sm90 && !runner) call(p, frame, nullptr);  // whether it can be, for images of any size
      p.sm90 = p.sm90 && rows_of(p) >= sm90_rows;
    }
    return call(p, frame, runner);
  }

 private:
  template <class Params>
  static int64_t call(const Params& p, const Frame& frame, const Runner* runner) {
    check_cuda(p);
    if (!runner) return c::make(p, frame.multiprocessors, nullptr);
    const CudaLaunch launch{runner->stream, runner->scratch, runner->counters};
    return c::make(p, frame.multiprocessors, &launch);
  }
};

Step fuse_path(Reader& r) {
  hifuse_cuda_fuse_path_params p{};
  const MapOf local_map = r.read("local_map"), global_map = r.read("global_map"), out = r.write("out");
  check_like("local_map", local_map, out);
  check_like("global_map", global_map, out);
  p.dtype = r.dtype(), p.channels = out.channels, p.eps = r.number("eps");
  const int64_t room = room_of(1, 1);
  p.weights = r.packed("weights", 4 * room * room), p.biases = r.floats("biases", 3 * room);
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_fuse_path_params now = p;
    set_size(now, f, out);
    now.local_map = f.at(local_map), now.global_map = f.at(global_map), now.out = f.at(out);
    return Cuda{}.make(now, f, runner);
  };
}

// Calls for which Python took a kernel for sm_90a, and from how many rows on.
Cuda on_sm90(Reader& r) { return {r.integer("sm90_rows", 1, INT32_MAX)}; }

}  // namespace

Step cuda_step(const std::string& op, Reader& r, int64_t in_chans) {
  if (op == "global_block") return from_like<Cuda::GlobalBlock>("x", r, Cuda{});
  if (op == "fuse_path") return fuse_path(r);
  if (op == "mixer_sm90") return from_like<Cuda::Mixer>("z", r, on_sm90(r));
  if (op == "mlp_sm90") return mlp(r, on_sm90(r));
  if (Step step = step_of_both(op, r, in_chans, Cuda{})) return step;
  refuse("this library has no such op on a CUDA device");
}

}  // namespace hifuse::c
