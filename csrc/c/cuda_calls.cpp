// The calls of a network on a CUDA device.
#include <algorithm>
#include <optional>
#include <string>

#include "c/cuda_ops.h"
#include "c/reader.h"

namespace hifuse::c {
namespace {

// What is left of a call once batch, sizes and maps are known.
template <class Params>
int64_t finish(const Params& params, const Frame& frame, const Runner* runner) {
  check_cuda(params);
  if (!runner) return make(params, frame.multiprocessors, nullptr);
  const CudaLaunch launch{runner->stream, runner->scratch, runner->counters};
  return make(params, frame.multiprocessors, &launch);
}

// The batch, height and width of a map, for ops over one.
template <class Params>
void set_size(Params& params, const Frame& frame, const MapOf& map) {
  params.batch = frame.images.batch, params.height = frame.rows(map), params.width = frame.columns(map);
}

Step stem(Reader& r, int64_t in_chans) {
  hifuse_cuda_stem_params p{};
  require(r.text("images") == "images", "images must be those of the network");
  const MapOf local_map = r.write("local_map"), global_map = r.write("global_map");
  check_like("local_map", local_map, global_map);
  require(local_map.per == 4, "local_map must be a quarter as high and wide as the images");
  p.dtype = r.dtype(), p.in_chans = in_chans, p.channels = local_map.channels;
  p.weight = r.packed("weight", product_of("weight", {2, p.channels, 16, in_chans}));
  p.bias = r.packed("bias", 2 * p.channels);
  p.scale = r.floats("scale", 2 * p.channels), p.shift = r.floats("shift", 2 * p.channels);
  p.eps[0] = r.number("local_eps"), p.eps[1] = r.number("global_eps");
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_stem_params now = p;
    set_size(now, f, local_map);
    now.image_dtype = f.images.dtype, now.images = f.images.data;
    std::copy_n(f.strides, 4, now.strides);
    now.image_height = f.images.height, now.image_width = f.images.width;
    now.out[0] = f.at(local_map), now.out[1] = f.at(global_map);
    return finish(now, f, runner);
  };
}

Step linear(Reader& r) {
  hifuse_cuda_linear_params p{};
  const std::vector<MapOf> maps = r.read_some("maps", 3);
  const std::optional<MapOf> residual = r.read_or_none("residual");
  const MapOf out = r.write("out");
  p.dtype = r.dtype(), p.columns = out.channels;
  p.rows = r.choice("rows", Rows::patches), p.norm = r.choice("norm", Norm::pixel), p.eps = r.number("eps");
  p.activation = r.choice("activation", Activation::relu), p.pool = r.flag("pool");
  const bool patches = p.rows == Rows::patches;
  int64_t depth = 0;
  for (size_t i = 0; i < maps.size(); ++i) {
    check_size("maps", maps[i], patches || p.pool ? 2 : 1, out);
    p.channels[i] = maps[i].channels;
    depth += maps[i].channels * (patches ? 4 : 1);
  }
  if (residual) check_like("residual", *residual, out);
  p.weight = r.packed("weight", product_of("weight", {p.columns, depth})), p.bias = r.packed("bias", p.columns);
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_linear_params now = p;
    set_size(now, f, maps[0]);
    for (size_t i = 0; i < maps.size(); ++i) now.maps[i] = f.at(maps[i]);
    now.residual = at(f, residual), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

// The side of the weights of a block in one kernel.
int64_t room_of(int64_t channels, int64_t heads) { return channels <= 96 && heads <= 3 ? 96 : 192; }

Step local_block(Reader& r) {
  hifuse_cuda_local_block_params p{};
  const MapOf x = r.read("x"), out = r.write("out");
  check_like("x", x, out);
  p.dtype = r.dtype(), p.channels = out.channels, p.eps = r.number("eps"), p.whole = r.flag("whole");
  p.filters = r.floats("filters", 9 * ((p.channels + 7) / 8 * 8));
  if (p.whole) {
    const int64_t room = room_of(p.channels, 1);
    p.filter_bias = r.floats("filter_bias", p.channels), p.bias = r.floats("bias", p.channels);
    p.weight = r.packed("weight", room * room);
  } else {
    p.filter_bias = r.packed("filter_bias", p.channels), p.bias = r.packed("bias", p.channels);
    p.weight = r.packed("weight", product_of("weight", {p.channels, p.channels}));
    p.ones = r.floats("ones", p.channels), p.zeros = r.floats("zeros", p.channels);
  }
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_local_block_params now = p;
    set_size(now, f, out);
    now.x = f.at(x), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

WindowAttentionShape shape_of(Reader& r, int64_t channels) {
  WindowAttentionShape s{};
  s.dtype = r.dtype(), s.num_heads = r.integer("num_heads", 1, channels);
  require(channels % s.num_heads == 0, "num_heads must divide the channels, got ", s.num_heads);
  s.head_dim = channels / s.num_heads;
  s.window_size = r.integer("window_size", 1, 16), s.shift_size = r.integer("shift_size", 0, s.window_size - 1);
  s.scale = r.wide_number("scale");
  return s;
}

void set_size(WindowAttentionShape& shape, const Frame& frame, const MapOf& map) {
  shape.batch = frame.images.batch, shape.height = frame.rows(map), shape.width = frame.columns(map);
}

Step global_block(Reader& r) {
  hifuse_cuda_global_block_params p{};
  const MapOf x = r.read("x"), out = r.write("out");
  check_like("x", x, out);
  p.shape = shape_of(r, out.channels), p.eps = r.number("eps");
  const int64_t heads = p.shape.num_heads, room = room_of(out.channels, heads), of_heads = product_of("qkv", {32, heads});
  require(r.integer("head_dim", 1, INT32_MAX) == p.shape.head_dim, "head_dim must be ", p.shape.head_dim);
  p.qkv = r.packed("qkv", product_of("qkv", {3, of_heads, room}));
  p.qkv_bias = r.floats("qkv_bias", 3 * of_heads), p.padding = r.floats("padding", 3 * of_heads);
  p.table = r.floats("table", product_of("table", {heads, 4 * 7 * 32 * 4}));
  p.weight = r.packed("weight", room * room), p.bias = r.floats("bias", out.channels);
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_global_block_params now = p;
    set_size(now.shape, f, out);
    now.x = f.at(x), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

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
    return finish(now, f, runner);
  };
}

Step window_attention(Reader& r) {
  hifuse_cuda_window_attention_params p{};
  const MapOf qkv = r.read("qkv"), out = r.write("out");
  check_size("qkv", qkv, 1, out);
  require(qkv.channels == 3 * out.channels, "qkv must have three times the channels of the result");
  const WindowAttentionShape& s = p.shape = shape_of(r, out.channels);
  p.bias_table = r.floats("bias_table", (2 * s.window_size - 1) * (2 * s.window_size - 1) * s.num_heads);
  p.qkv_bias = r.packed_or_none("qkv_bias", qkv.channels);
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_window_attention_params now = p;
    set_size(now.shape, f, out);
    now.qkv = f.at(qkv), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

Step gated_concat(Reader& r) {
  hifuse_cuda_gated_concat_params p{};
  const MapOf local_map = r.read("local_map"), global_map = r.read("global_map"), x = r.read("x"), out = r.write("out");
  check_like("local_map", local_map, x);
  check_like("global_map", global_map, x);
  check_size("x", x, 1, out);
  require(out.channels == 3 * x.channels, "out must have three times the channels of x");
  p.dtype = r.dtype(), p.channels = x.channels;
  p.squeezed = r.count_of("squeeze") / p.channels;
  const int64_t units = product_of("squeeze", {p.squeezed, p.channels});
  p.filters = r.floats("filters", 98), p.filter_bias = r.floats("filter_bias", 1);
  p.squeeze = r.floats("squeeze", units), p.expand = r.floats("expand", units);
  p.scale = r.floats("scale", 3 * p.channels), p.shift = r.floats("shift", 3 * p.channels);
  p.double_sigmoid = r.flag("double_sigmoid"), p.eps = r.number("eps");
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_gated_concat_params now = p;
    set_size(now, f, out);
    now.local_map = f.at(local_map), now.global_map = f.at(global_map), now.x = f.at(x), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

Step mixer(Reader& r) {
  hifuse_cuda_mixer_params p{};
  const MapOf z = r.read("z"), out = r.write("out");
  check_like("z", z, out);
  p.dtype = r.dtype(), p.channels = out.channels, p.depthwise = r.flag("depthwise");
  p.weight = r.packed("weight", product_of("weight", {9, p.channels, p.depthwise ? 1 : p.channels}));
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_mixer_params now = p;
    set_size(now, f, out);
    now.z = f.at(z), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

Step mlp(Reader& r) {
  hifuse_cuda_mlp_params p{};
  const MapOf u = r.read("u");
  const std::optional<MapOf> residual = r.read_or_none("residual");
  const MapOf out = r.write("out");
  check_size("u", u, 1, out);
  if (residual) check_like("residual", *residual, out);
  p.dtype = r.dtype(), p.depth = u.channels, p.hidden = r.count_of("expand_bias"), p.columns = out.channels;
  p.expand = r.packed("expand", product_of("expand", {p.hidden, p.depth})), p.expand_bias = r.packed("expand_bias", p.hidden);
  p.project = r.packed("project", product_of("project", {p.columns, p.hidden}));
  p.project_bias = r.packed("project_bias", p.columns);
  return [=](const Frame& f, const Runner* runner) {
    hifuse_cuda_mlp_params now = p;
    now.batch = f.images.batch, now.rows = f.rows(out) * f.columns(out);
    now.u = f.at(u), now.residual = at(f, residual), now.out = f.at(out);
    return finish(now, f, runner);
  };
}

Step mean(Reader& r) {
  const MapOf x = r.read("x"), out = r.write("out");
  const DType dtype = r.dtype();
  require(out.per == 0 && out.channels == x.channels, "out must be one pixel of the channels of x");
  return [=](const Frame& f, const Runner* runner) {
    const hifuse_mean_params now{dtype, f.images.batch, f.rows(x) * f.columns(x), x.channels, f.at(x), f.at(out)};
    return finish(now, f, runner);
  };
}

}  // namespace

Step cuda_step(const std::string& op, Reader& r, int64_t in_chans) {
  if (op == "stem") return stem(r, in_chans);
  if (op == "linear") return linear(r);
  if (op == "local_block") return local_block(r);
  if (op == "global_block") return global_block(r);
  if (op == "fuse_path") return fuse_path(r);
  if (op == "window_attention") return window_attention(r);
  if (op == "gated_concat") return gated_concat(r);
  if (op == "mixer") return mixer(r);
  if (op == "mlp") return mlp(r);
  if (op == "mean") return mean(r);
  refuse("this library has no such op on a CUDA device");
}

}  // namespace hifuse::c
