// The calls of a network on a CPU.
#include <algorithm>
#include <optional>
#include <string>

#include "c/attention.h"
#include "c/checks.h"
#include "c/reader.h"
#include "cpu/isa.h"
#include "cpu/packed_sizes.h"

namespace hifuse::c {
namespace {

template <class Params>
using Kernel = void (*KernelTable::*)(const Params&, const Parallel&);

// What is left of a call once batch, sizes and maps are known.
template <class Params>
int64_t make(const Params& params, Kernel<Params> kernel, const Runner* runner) {
  check(params);
  if (runner) (isa::kernels().*kernel)(params, runner->parallel);
  return 0;
}

Step stem(Reader& r, int64_t in_chans) {
  Stem p{};
  require(r.text("images") == "images", "images must be those of the network");
  const MapOf local_map = r.write("local_map"), global_map = r.write("global_map");
  check_like("local_map", local_map, global_map);
  require(local_map.per == 4, "local_map must be a quarter as high and wide as the images");
  p.dtype = r.dtype(), p.in_chans = in_chans, p.channels = local_map.channels;
  check_matrix(p.dtype, Algorithm::direct, 2 * p.channels, 16 * in_chans);
  p.weight = r.packed("weight", packed_matrix_size(2 * p.channels, 16 * in_chans, Algorithm::direct));
  p.bias = r.floats("bias", 2 * p.channels);
  p.scale = r.floats("scale", 2 * p.channels);
  p.shift = r.floats("shift", 2 * p.channels);
  p.eps[0] = r.number("local_eps"), p.eps[1] = r.number("global_eps");
  return [=](const Frame& f, const Runner* runner) {
    Stem now = p;
    now.batch = f.images.batch, now.height = f.rows(local_map), now.width = f.columns(local_map);
    now.image_dtype = f.images.dtype, now.images = f.images.data;
    std::copy_n(f.strides, 4, now.strides);
    now.image_height = f.images.height, now.image_width = f.images.width;
    now.out[0] = f.at(local_map), now.out[1] = f.at(global_map);
    return make(now, &KernelTable::stem, runner);
  };
}

Step linear(Reader& r, bool int8) {
  Linear p{};
  const std::vector<MapOf> maps = r.read_some("maps", 3);
  const std::optional<MapOf> residual = r.read_or_none("residual");
  const MapOf out = r.write("out");
  p.dtype = r.dtype(), p.columns = out.channels;
  p.rows = r.choice("rows", Rows::patches), p.norm = r.choice("norm", Norm::pixel), p.eps = r.number("eps");
  p.activation = r.choice("activation", Activation::relu), p.pool = r.flag("pool");
  const int64_t times = p.rows == Rows::patches || p.pool ? 2 : 1;
  int64_t depth = 0;
  for (size_t i = 0; i < maps.size(); ++i) {
    check_size("maps", maps[i], times, out);
    p.channels[i] = maps[i].channels;
    depth += maps[i].channels * (p.rows == Rows::patches ? 4 : 1);
  }
  if (residual) check_like("residual", *residual, out);
  p.algorithm = int8 ? Algorithm::int8 : r.choice("algorithm", Algorithm::strassen);
  check_matrix(p.dtype, p.algorithm, p.columns, depth);
  if (int8) {
    p.weight = r.packed_int8("weight", packed_int8_size(p.columns, depth));
    p.scale = r.floats("scale", p.columns), p.inverse = r.number("inverse");
  } else {
    p.weight = r.packed("weight", packed_matrix_size(p.columns, depth, p.algorithm));
  }
  p.bias = r.floats("bias", p.columns);
  return [=](const Frame& f, const Runner* runner) {
    Linear now = p;
    const int64_t pooled = p.pool ? 2 : 1;
    now.batch = f.images.batch, now.height = f.rows(out) * pooled, now.width = f.columns(out) * pooled;
    for (size_t i = 0; i < maps.size(); ++i) now.maps[i] = f.at(maps[i]);
    now.residual = at(f, residual), now.out = f.at(out);
    return make(now, &KernelTable::linear, runner);
  };
}

Step local_block(Reader& r, bool int8) {
  Linear p{};
  const MapOf x = r.read("x"), out = r.write("out");
  check_like("x", x, out);
  const int64_t channels = out.channels;
  p.dtype = r.dtype(), p.rows = Rows::depthwise, p.channels[0] = p.columns = channels;
  p.algorithm = int8 ? Algorithm::int8 : Algorithm::direct;
  check_matrix(p.dtype, p.algorithm, channels, channels);
  p.filters = r.floats("filters", 9 * channels), p.filter_bias = r.floats("filter_bias", channels);
  p.norm = Norm::row, p.eps = r.number("eps"), p.activation = Activation::gelu;
  if (int8) {
    p.weight = r.packed_int8("weight", packed_int8_size(channels, channels));
    p.scale = r.floats("scale", channels), p.inverse = r.number("inverse");
  } else {
    p.weight = r.packed("weight", packed_matrix_size(channels, channels, p.algorithm));
  }
  p.bias = r.floats("bias", channels);
  return [=](const Frame& f, const Runner* runner) {
    Linear now = p;
    now.batch = f.images.batch, now.height = f.rows(out), now.width = f.columns(out);
    now.maps[0] = now.residual = f.at(x), now.out = f.at(out);
    return make(now, &KernelTable::linear, runner);
  };
}

Step window_attention(Reader& r) {
  hifuse_window_attention_params p{};
  const MapOf qkv = r.read("qkv"), out = r.write("out");
  check_size("qkv", qkv, 1, out);
  require(qkv.channels == 3 * out.channels, "qkv must have three times the channels of the result");
  WindowAttentionShape& s = p.shape;
  s.dtype = r.dtype(), s.num_heads = r.integer("num_heads", 1, out.channels);
  require(out.channels % s.num_heads == 0, "num_heads must divide the channels, got ", s.num_heads);
  s.head_dim = out.channels / s.num_heads;
  s.window_size = r.integer("window_size", 1, 16), s.shift_size = r.integer("shift_size", 0, s.window_size - 1);
  s.scale = r.wide_number("scale");
  p.bias_table = r.floats("bias_table", (2 * s.window_size - 1) * (2 * s.window_size - 1) * s.num_heads);
  p.qkv_bias = r.floats_or_none("qkv_bias", qkv.channels);
  return [=](const Frame& f, const Runner* runner) {
    hifuse_window_attention_params now = p;
    now.shape.batch = f.images.batch, now.shape.height = f.rows(out), now.shape.width = f.columns(out);
    now.qkv = f.at(qkv), now.out = f.at(out);
    return make(attention(now), &KernelTable::window_attention_forward, runner);
  };
}

Step gated_concat(Reader& r) {
  GatedConcat p{};
  const MapOf local_map = r.read("local_map"), global_map = r.read("global_map"), x = r.read("x"), out = r.write("out");
  check_like("local_map", local_map, x);
  check_like("global_map", global_map, x);
  check_size("x", x, 1, out);
  require(out.channels == 3 * x.channels, "out must have three times the channels of x");
  p.dtype = r.dtype(), p.channels = x.channels;
  p.squeezed = r.count_of("squeeze") / p.channels;
  p.filters = r.floats("filters", 98), p.filter_bias = *r.floats("filter_bias", 1);
  p.squeeze = r.floats("squeeze", p.squeezed * p.channels), p.expand = r.floats("expand", p.squeezed * p.channels);
  p.scale = r.floats("scale", 3 * p.channels), p.shift = r.floats("shift", 3 * p.channels);
  p.double_sigmoid = r.flag("double_sigmoid"), p.eps = r.number("eps");
  return [=](const Frame& f, const Runner* runner) {
    GatedConcat now = p;
    now.batch = f.images.batch, now.height = f.rows(out), now.width = f.columns(out);
    now.local_map = f.at(local_map), now.global_map = f.at(global_map), now.x = f.at(x), now.out = f.at(out);
    return make(now, &KernelTable::gated_concat, runner);
  };
}

Step mixer(Reader& r) {
  Mixer p{};
  const MapOf z = r.read("z"), out = r.write("out");
  check_like("z", z, out);
  p.dtype = r.dtype(), p.channels = out.channels, p.algorithm = r.choice("algorithm", Algorithm::depthwise);
  check_filters(p.dtype, p.algorithm, p.channels);
  p.weight = p.algorithm == Algorithm::depthwise ? r.floats("weight", 9 * p.channels)
                                                 : r.packed("weight", packed_filters_size(p.channels, p.dtype, p.algorithm));
  return [=](const Frame& f, const Runner* runner) {
    Mixer now = p;
    now.batch = f.images.batch, now.height = f.rows(out), now.width = f.columns(out);
    now.z = f.at(z), now.out = f.at(out);
    return make(now, &KernelTable::mixer, runner);
  };
}

Step mlp(Reader& r, bool int8) {
  Mlp p{};
  const MapOf u = r.read("u");
  const std::optional<MapOf> residual = r.read_or_none("residual");
  const MapOf out = r.write("out");
  check_size("u", u, 1, out);
  if (residual) check_like("residual", *residual, out);
  p.dtype = r.dtype(), p.depth = u.channels, p.hidden = r.count_of("expand_bias"), p.columns = out.channels;
  p.algorithm = int8 ? Algorithm::int8 : r.choice("algorithm", Algorithm::strassen);
  check_matrix(p.dtype, p.algorithm, p.hidden, p.depth);
  check_matrix(p.dtype, int8 ? Algorithm::int8 : Algorithm::direct, p.columns, p.hidden);
  if (int8) {
    p.expand = r.packed_int8("expand", packed_int8_size(p.hidden, p.depth));
    p.project = r.packed_int8("project", packed_int8_size(p.columns, p.hidden, kHidden));
    p.expand_scale = r.floats("expand_scale", p.hidden), p.project_scale = r.floats("project_scale", p.columns);
    p.inverse = r.number("inverse"), p.hidden_inverse = r.number("hidden_inverse");
  } else {
    p.expand = r.packed("expand", packed_matrix_size(p.hidden, p.depth, p.algorithm));
    p.project = r.packed("project", packed_matrix_size(p.columns, p.hidden, Algorithm::direct));
  }
  p.expand_bias = r.floats("expand_bias", p.hidden), p.project_bias = r.floats("project_bias", p.columns);
  return [=](const Frame& f, const Runner* runner) {
    Mlp now = p;
    now.batch = f.images.batch, now.rows = f.rows(out) * f.columns(out);
    now.u = f.at(u), now.residual = at(f, residual), now.out = f.at(out);
    return make(now, &KernelTable::mlp, runner);
  };
}

Step mean(Reader& r) {
  const MapOf x = r.read("x"), out = r.write("out");
  const DType dtype = r.dtype();
  require(out.per == 0 && out.channels == x.channels, "out must be one pixel of the channels of x");
  return [=](const Frame& f, const Runner* runner) {
    const Mean now{dtype, f.images.batch, f.rows(x) * f.columns(x), x.channels, f.at(x), f.at(out)};
    return make(now, &KernelTable::mean, runner);
  };
}

}  // namespace

Step cpu_step(const std::string& op, Reader& r, int64_t in_chans) {
  if (op == "stem") return stem(r, in_chans);
  if (op == "linear") return linear(r, false);
  if (op == "linear_int8") return linear(r, true);
  if (op == "local_block") return local_block(r, false);
  if (op == "local_block_int8") return local_block(r, true);
  if (op == "window_attention") return window_attention(r);
  if (op == "gated_concat") return gated_concat(r);
  if (op == "mixer") return mixer(r);
  if (op == "mlp") return mlp(r, false);
  if (op == "mlp_int8") return mlp(r, true);
  if (op == "mean") return mean(r);
  refuse("this library has no such op");
}

}  // namespace hifuse::c
