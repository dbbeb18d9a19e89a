// The steps of the ops that a CPU and a CUDA device both have: which maps a call reads and writes, how large they must be, and
// where they lie when it is made. A device brings the rest:
//
//     struct Device {
//       using Stem = ...;  // and so on: what each op is given
//       void read(Reader&, Stem&) const;  // what is in the call beside the maps, and how weights lie; maps' channels are known
//       int64_t make(const Stem&, const Frame&, const Runner*) const;  // checks it, and makes it unless the runner is null
//     };
#pragma once

#include <algorithm>
#include <optional>
#include <string>

#include "c/reader.h"

namespace hifuse::c {

// Gives an op the size of a map.
template <class Params>
void set_size(Params& params, const Frame& frame, const MapOf& map) {
  if constexpr (requires { params.shape; })
    set_size(params.shape, frame, map);
  else
    params.batch = frame.images.batch, params.height = frame.rows(map), params.width = frame.columns(map);
}

template <class Device>
Step stem(Reader& r, int64_t in_chans, const Device& device) {
  typename Device::Stem p{};
  require(r.text("images") == "images", "images must be those of the network");
  const MapOf local_map = r.write("local_map"), global_map = r.write("global_map");
  check_like("local_map", local_map, global_map);
  require(local_map.per == 4, "local_map must be a quarter as high and wide as the images");
  p.dtype = r.dtype(), p.in_chans = in_chans, p.channels = local_map.channels;
  p.scale = r.floats("scale", 2 * p.channels), p.shift = r.floats("shift", 2 * p.channels);
  p.eps[0] = r.number("local_eps"), p.eps[1] = r.number("global_eps");
  device.read(r, p);
  return [=](const Frame& f, const Runner* runner) {
    auto now = p;
    set_size(now, f, local_map);
    now.image_dtype = f.images.dtype, now.images = f.images.data;
    std::copy_n(f.strides, 4, now.strides);
    now.image_height = f.images.height, now.image_width = f.images.width;
    now.out[0] = f.at(local_map), now.out[1] = f.at(global_map);
    return device.make(now, f, runner);
  };
}

template <class Device>
Step linear(Reader& r, const Device& device) {
  typename Device::Linear p{};
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
  device.read(r, p, depth);
  return [=](const Frame& f, const Runner* runner) {
    auto now = p;
    set_size(now, f, patches && Device::kSizeOfPatches ? out : maps[0]);
    for (size_t i = 0; i < maps.size(); ++i) now.maps[i] = f.at(maps[i]);
    now.residual = at(f, residual), now.out = f.at(out);
    return device.make(now, f, runner);
  };
}

// An op from a map, of this name in the call, to one like it.
template <class Params, class Device>
Step from_like(const char* name, Reader& r, const Device& device) {
  Params p{};
  const MapOf from = r.read(name), out = r.write("out");
  check_like(name, from, out);
  device.read(r, p, out.channels);
  return [=](const Frame& f, const Runner* runner) {
    Params now = p;
    set_size(now, f, out);
    Device::place(now, f.at(from)), now.out = f.at(out);
    return device.make(now, f, runner);
  };
}

inline WindowAttentionShape shape_of(Reader& r, int64_t channels) {
  WindowAttentionShape s{};
  s.dtype = r.dtype(), s.num_heads = r.integer("num_heads", 1, channels);
  require(channels % s.num_heads == 0, "num_heads must divide the channels, got ", s.num_heads);
  s.head_dim = channels / s.num_heads;
  s.window_size = r.integer("window_size", 1, 16), s.shift_size = r.integer("shift_size", 0, s.window_size - 1);
  s.scale = r.wide_number("scale");
  return s;
}

template <class Device>
Step window_attention(Reader& r, const Device& device) {
  typename Device::WindowAttention p{};
  const MapOf qkv = r.read("qkv"), out = r.write("out");
  check_size("qkv", qkv, 1, out);
  require(qkv.channels == 3 * out.channels, "qkv must have three times the channels of the result");
  p.shape = shape_of(r, out.channels);
  const int64_t side = 2 * p.shape.window_size - 1;
  p.bias_table = r.floats("bias_table", side * side * p.shape.num_heads);
  device.read(r, p, qkv.channels);
  return [=](const Frame& f, const Runner* runner) {
    auto now = p;
    set_size(now, f, out);
    now.qkv = f.at(qkv), now.out = f.at(out);
    return device.make(now, f, runner);
  };
}

template <class Device>
Step gated_concat(Reader& r, const Device& device) {
  typename Device::GatedConcat p{};
  const MapOf local_map = r.read("local_map"), global_map = r.read("global_map"), x = r.read("x"), out = r.write("out");
  check_like("local_map", local_map, x);
  check_like("global_map", global_map, x);
  check_size("x", x, 1, out);
  require(out.channels == 3 * x.channels, "out must have three times the channels of x");
  p.dtype = r.dtype(), p.channels = x.channels;
  p.squeezed = r.count_of("squeeze") / p.channels;
  const int64_t units = p.squeezed * p.channels;  // no more than the file has
  p.filters = r.floats("filters", 98), p.squeeze = r.floats("squeeze", units), p.expand = r.floats("expand", units);
  p.scale = r.floats("scale", 3 * p.channels), p.shift = r.floats("shift", 3 * p.channels);
  p.double_sigmoid = r.flag("double_sigmoid"), p.eps = r.number("eps");
  device.read(r, p);
  return [=](const Frame& f, const Runner* runner) {
    auto now = p;
    set_size(now, f, out);
    now.local_map = f.at(local_map), now.global_map = f.at(global_map), now.x = f.at(x), now.out = f.at(out);
    return device.make(now, f, runner);
  };
}

template <class Device>
Step mlp(Reader& r, const Device& device) {
  typename Device::Mlp p{};
  const MapOf u = r.read("u");
  const std::optional<MapOf> residual = r.read_or_none("residual");
  const MapOf out = r.write("out");
  check_size("u", u, 1, out);
  if (residual) check_like("residual", *residual, out);
  p.dtype = r.dtype(), p.depth = u.channels, p.hidden = r.count_of("expand_bias"), p.columns = out.channels;
  device.read(r, p);
  return [=](const Frame& f, const Runner* runner) {
    auto now = p;
    now.batch = f.images.batch, now.rows = f.rows(out) * f.columns(out);
    now.u = f.at(u), now.residual = at(f, residual), now.out = f.at(out);
    return device.make(now, f, runner);
  };
}

template <class Device>
Step mean(Reader& r, const Device& device) {
  const MapOf x = r.read("x"), out = r.write("out");
  const DType dtype = r.dtype();
  require(out.per == 0 && out.channels == x.channels, "out must be one pixel of the channels of x");
  return [=](const Frame& f, const Runner* runner) {
    return device.make(Mean{dtype, f.images.batch, f.rows(x) * f.columns(x), x.channels, f.at(x), f.at(out)}, f, runner);
  };
}

// The step of an op that both have, by its name; empty for one that they have not.
template <class Device>
Step step_of_both(const std::string& op, Reader& r, int64_t in_chans, const Device& device) {
  if (op == "stem") return stem(r, in_chans, device);
  if (op == "linear") return linear(r, device);
  if (op == "local_block") return from_like<typename Device::LocalBlock>("x", r, device);
  if (op == "window_attention") return window_attention(r, device);
  if (op == "gated_concat") return gated_concat(r, device);
  if (op == "mixer") return from_like<typename Device::Mixer>("z", r, device);
  if (op == "mlp") return mlp(r, device);
  if (op == "mean") return mean(r, device);
  return {};
}

}  // namespace hifuse::c
