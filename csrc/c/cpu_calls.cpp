// The calls of a network on a CPU.
#include <string>

#include "c/attention.h"
#include "c/checks.h"
#include "c/steps.h"
#include "cpu/isa.h"
#include "cpu/packed_sizes.h"

namespace hifuse::c {
namespace {

struct Cpu {
  using Stem = hifuse::Stem;
  using Linear = hifuse::Linear;
  struct LocalBlock : hifuse::Linear {};  // a linear whose rows are depthwise convolutions
  using WindowAttention = hifuse_window_attention_params;
  using GatedConcat = hifuse::GatedConcat;
  using Mixer = hifuse::Mixer;
  using Mlp = hifuse::Mlp;
  static constexpr bool kSizeOfPatches = true;  // a linear is given the size of the map that its rows are the pixels of

  bool int8 = false;  // of products: whether they are in 8 bits

  void read(Reader& r, Stem& p) const {
    check_matrix(p.dtype, Algorithm::direct, 2 * p.channels, 16 * p.in_chans);
    p.weight = r.packed("weight", packed_matrix_size(2 * p.channels, 16 * p.in_chans, Algorithm::direct));
    p.bias = r.floats("bias", 2 * p.channels);
  }

  void read(Reader& r, Linear& p, int64_t depth) const {
    p.algorithm = algorithm(r);
    read_product(r, p, depth);
  }

  void read(Reader& r, LocalBlock& p, int64_t channels) const {
    p.dtype = r.dtype(), p.rows = Rows::depthwise, p.channels[0] = p.columns = channels;
    p.filters = r.floats("filters", 9 * channels), p.filter_bias = r.floats("filter_bias", channels);
    p.norm = Norm::row, p.eps = r.number("eps"), p.activation = Activation::gelu;
    p.algorithm = int8 ? Algorithm::int8 : Algorithm::direct;
    read_product(r, p, channels);
  }

  void read(Reader& r, GatedConcat& p) const { p.filter_bias = *r.floats("filter_bias", 1); }

  void read(Reader& r, WindowAttention& p, int64_t channels) const { p.qkv_bias = r.floats_or_none("qkv_bias", channels); }

  void read(Reader& r, Mixer& p, int64_t channels) const {
    p.dtype = r.dtype(), p.channels = channels;
    p.algorithm = r.choice("algorithm", Algorithm::int8_winograd2);
    check_filters(p.dtype, p.algorithm, channels);
    require(in_int8(p.algorithm) == int8, "algorithm is of another op");
    if (int8) {
      p.weight = r.packed_int8("weight", packed_int8_filters_size(channels, p.algorithm));
      p.scale = r.floats("scale", channels), p.inverse = r.number("inverse");
      return;
    }
    p.weight = p.algorithm == Algorithm::depthwise ? r.floats("weight", 9 * channels)
                                                   : r.packed("weight", packed_filters_size(channels, p.dtype, p.algorithm));
  }

  void read(Reader& r, Mlp& p) const {
    p.algorithm = algorithm(r);
    p.expand = matrix("expand", r, p.algorithm, p.hidden, p.depth), p.expand_bias = r.floats("expand_bias", p.hidden);
    p.project = matrix("project", r, int8 ? Algorithm::int8 : Algorithm::direct, p.columns, p.hidden, kHidden);
    p.project_bias = r.floats("project_bias", p.columns);
    if (!int8) return;
    p.expand_scale = r.floats("expand_scale", p.hidden), p.project_scale = r.floats("project_scale", p.columns);
    p.inverse = r.number("inverse"), p.hidden_inverse = r.number("hidden_inverse");
  }

  static void place(LocalBlock& p, const void* x) { p.maps[0] = p.residual = x; }
  static void place(Mixer& p, const void* z) { p.z = z; }

  int64_t make(const Stem& p, const Frame&, const Runner* runner) const { return call(p, &KernelTable::stem, runner); }
  int64_t make(const Linear& p, const Frame&, const Runner* runner) const { return call(p, &KernelTable::linear, runner); }
  int64_t make(const WindowAttention& p, const Frame&, const Runner* runner) const {
    return call(attention(p), &KernelTable::window_attention_forward, runner);
  }
  int64_t make(const GatedConcat& p, const Frame&, const Runner* runner) const {
    return call(p, &KernelTable::gated_concat, runner);
  }
  int64_t make(const Mixer& p, const Frame&, const Runner* runner) const { return call(p, &KernelTable::mixer, runner); }
  int64_t make(const Mlp& p, const Frame&, const Runner* runner) const { return call(p, &KernelTable::mlp, runner); }
  int64_t make(const Mean& p, const Frame&, const Runner* runner) const { return call(p, &KernelTable::mean, runner); }

 private:
  template <class Params>
  static int64_t call(const Params& params, void (*KernelTable::*kernel)(const Params&, const Parallel&),
                      const Runner* runner) {
    check(params);
    if (runner) (isa::kernels().*kernel)(params, runner->parallel);
    return 0;
  }

  Algorithm algorithm(Reader& r) const { return int8 ? Algorithm::int8 : r.choice("algorithm", Algorithm::strassen); }

  static void read_product(Reader& r, Linear& p, int64_t depth) {
    p.weight = matrix("weight", r, p.algorithm, p.columns, depth), p.bias = r.floats("bias", p.columns);
    if (p.algorithm == Algorithm::int8) p.scale = r.floats("scale", p.columns), p.inverse = r.number("inverse");
  }

  // A packed weight; of int8 in blocks of such a depth.
  static const void* matrix(const char* name, Reader& r, Algorithm algorithm, int64_t columns, int64_t depth,
                            int64_t block = 0) {
    check_matrix(r.dtype(), algorithm, columns, depth);
    if (algorithm == Algorithm::int8) return r.packed_int8(name, packed_int8_size(columns, depth, block));
    return r.packed(name, packed_matrix_size(columns, depth, algorithm));
  }
};

}  // namespace

Step cpu_step(const std::string& op, Reader& r, int64_t in_chans) {
  if (op == "linear_int8") return linear(r, Cpu{true});
  if (op == "local_block_int8") return from_like<Cpu::LocalBlock>("x", r, Cpu{true});
  if (op == "mixer_int8") return from_like<Cpu::Mixer>("z", r, Cpu{true});
  if (op == "mlp_int8") return mlp(r, Cpu{true});
  if (Step step = step_of_both(op, r, in_chans, Cpu{})) return step;
  refuse("this library has no such op");
}

}  // namespace hifuse::c
