#include "c/cuda_ops.h"

#include <algorithm>
#include <utility>

#include "c/checks.h"
#include "c/device.h"
#include "c/memory.h"
#include "cuda/block_ops.h"
#include "cuda/ends.h"
#include "cuda/kernels.h"
#include "cuda/map_ops.h"
#include "cuda/sm90_ops.h"

namespace hifuse::c {
namespace {

// What the hidden units of an MLP may take, which are read where they were written, from the L2 cache; and the rows of a tile
// of a product, of which a part has a multiple. Into how many parts the rows go changes no bit.
constexpr int64_t kHiddenBytes = int64_t{24} << 20, kTileRows = 128;

void tell(const char* error) {
  if (error != nullptr) throw Refused(error);
}

int64_t bytes_of(DType dtype, std::initializer_list<int64_t> sizes) {
  return product_of("scratch memory", sizes) * c::bytes_of(dtype);
}

// Where what is needed lies in scratch memory: each part from a line on.
class Room {
 public:
  explicit Room(const CudaLaunch* launch) : base_(launch ? static_cast<char*>(launch->scratch) : nullptr) {}
  void* take(int64_t bytes) {
    void* const at = base_ && bytes ? base_ + bytes_ : nullptr;
    bytes_ += (bytes + 255) / 256 * 256;
    return at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

template <class Pointer>
Map<Pointer> contiguous(Pointer data, int64_t height, int64_t width, int64_t channels) {
  return {data, height * width * channels, width * channels, channels};
}

cuda::Product product_of_map(DType dtype, int64_t batch, int64_t height, int64_t width, const void* map, int64_t channels) {
  cuda::Product p{};
  p.dtype = dtype, p.source = cuda::Source::pixels;
  p.batch = batch, p.height = height, p.width = width;
  p.maps[0] = contiguous(map, height, width, channels), p.channels[0] = channels;
  p.eps = 1.0f;
  return p;
}

// Scratch memory for a product, or for several that are made one after another.
int64_t sums_of(std::initializer_list<cuda::Product> products, int multiprocessors) {
  int64_t most = 0;
  for (const cuda::Product& p : products) most = std::max(most, cuda::products_scratch(&p, 1, multiprocessors));
  return most;
}

void multiply(const cuda::Product& p, void* sums, int multiprocessors, const CudaLaunch& launch) {
  tell(cuda::products(&p, 1, {sums, launch.counters}, multiprocessors, launch.stream));
}

void multiply(const cuda::Product& p, Room& room, int multiprocessors, const CudaLaunch* launch) {
  void* const sums = room.take(sums_of({p}, multiprocessors));
  if (launch) multiply(p, sums, multiprocessors, *launch);
}

#ifdef HIFUSE_SM90
constexpr bool kHasSm90 = true;
#else
constexpr bool kHasSm90 = false;
#endif

const char* launch_on_sm90(const cuda::MlpSm90& op, int multiprocessors, void* stream) {
  if constexpr (kHasSm90) return cuda::mlp_sm90(op, multiprocessors, stream);
  return nullptr;
}
const char* launch_on_sm90(const cuda::MixerSm90& op, int multiprocessors, void* stream) {
  if constexpr (kHasSm90) return cuda::mixer_sm90(op, multiprocessors, stream);
  return nullptr;
}

// A call by a kernel for sm_90a, which takes no scratch memory. Where it is not to be made, `op` has no rows: its other sizes
// are checked then.
template <class Op>
int64_t make_on_sm90(const Op& op, int multiprocessors, const CudaLaunch* launch) {
  require(op.dtype != DType::float32, "dtype must be HIFUSE_BFLOAT16 or HIFUSE_FLOAT16 with sm90, got ",
          static_cast<int>(op.dtype));
  require(kHasSm90, "sm90: this library was built without kernels for sm_90a");
  const int capability = device::capability();
  require(capability == 90, "sm90: its kernels run on devices of compute capability 9.0 alone, and this one has ",
          capability / 10, ".", capability % 10);
  tell(launch_on_sm90(op, multiprocessors, launch ? launch->stream : nullptr));
  return 0;
}

}  // namespace

int64_t counters_on(int multiprocessors) {
  return cuda::product_counters(multiprocessors) * static_cast<int64_t>(sizeof(uint32_t));
}

int64_t make(const hifuse_cuda_linear_params& a, int multiprocessors, const CudaLaunch* launch) {
  cuda::Product p = product_of_map(a.dtype, a.batch, a.height, a.width, a.maps[0], a.channels[0]);
  for (int i = 1; i < 3; ++i)
    if (a.channels[i]) p.maps[i] = contiguous(a.maps[i], a.height, a.width, a.channels[i]), p.channels[i] = a.channels[i];
  if (a.rows == Rows::patches) p.source = cuda::Source::patches;
  p.norm = a.norm, p.eps = a.eps;
  p.weight = a.weight, p.bias = a.bias, p.columns = a.columns;
  p.activation = a.activation, p.pool = a.pool, p.residual = a.residual, p.out = a.out;
  Room room(launch);
  multiply(p, room, multiprocessors, launch);
  return room.bytes();
}

int64_t make(const hifuse_cuda_stem_params& a, int multiprocessors, const CudaLaunch* launch) {
  const int64_t depth = 16 * a.in_chans, columns = 2 * a.channels;
  Room room(launch);
  void* const patches = room.take(bytes_of(a.dtype, {a.batch, a.height, a.width, depth}));
  void* const both = room.take(bytes_of(a.dtype, {a.batch, a.height, a.width, columns}));
  if (launch) {
    cuda::StemPatches op{a.dtype,        a.image_dtype, a.batch, a.height, a.width, a.in_chans,
                         a.image_height, a.image_width, {},      a.images, patches};
    std::copy_n(a.strides, 4, op.strides);
    tell(cuda::stem_patches(op, launch->stream));
  }
  cuda::Product p = product_of_map(a.dtype, a.batch, a.height, a.width, patches, depth);
  p.weight = a.weight, p.bias = a.bias, p.columns = columns, p.out = both;
  multiply(p, room, multiprocessors, launch);
  for (int i = 0; launch && i < 2; ++i) {
    const char* const half = static_cast<const char*>(both) + i * a.channels * c::bytes_of(a.dtype);
    const cuda::LayerNorm norm{a.batch,
                               a.height,
                               a.width,
                               a.channels,
                               false,
                               a.eps[i],
                               a.dtype,
                               contiguous<const void*>(half, a.height, a.width, columns),
                               {a.scale + i * a.channels, DType::float32},
                               {a.shift + i * a.channels, DType::float32}};
    tell(cuda::layer_norm_forward(norm, {a.out[i], a.dtype}, multiprocessors, launch->stream));
  }
  return room.bytes();
}

int64_t make(const hifuse_cuda_local_block_params& a, int multiprocessors, const CudaLaunch* launch) {
  if (a.whole) {
    if (launch)
      tell(cuda::local_block({a.dtype, a.batch, a.height, a.width, a.channels, a.eps, a.x, a.filters,
                              static_cast<const float*>(a.filter_bias), a.weight, static_cast<const float*>(a.bias), a.out},
                             launch->stream));
    return 0;
  }
  Room room(launch);
  void* const normed = room.take(bytes_of(a.dtype, {a.batch, a.height, a.width, a.channels}));
  if (launch) {
    const cuda::DepthwiseNorm norm{a.batch,
                                   a.height,
                                   a.width,
                                   a.channels,
                                   a.eps,
                                   a.dtype,
                                   a.dtype,
                                   contiguous(a.x, a.height, a.width, a.channels),
                                   a.filters,
                                   {a.filter_bias, a.dtype},
                                   {a.ones, DType::float32},
                                   {a.zeros, DType::float32}};
    tell(cuda::depthwise_norm_forward(norm, {normed, a.dtype}, multiprocessors, launch->stream));
  }
  cuda::Product p = product_of_map(a.dtype, a.batch, a.height, a.width, normed, a.channels);
  p.weight = a.weight, p.bias = a.bias, p.columns = a.channels;
  p.activation = Activation::gelu, p.residual = a.x, p.out = a.out;
  multiply(p, room, multiprocessors, launch);
  return room.bytes();
}

int64_t make(const hifuse_cuda_fuse_path_params& a, int, const CudaLaunch* launch) {
  if (launch)
    tell(cuda::fuse_path(
        {a.dtype, a.batch, a.height, a.width, a.channels, a.eps, a.local_map, a.global_map, a.weights, a.biases, a.out},
        launch->stream));
  return 0;
}

int64_t make(const hifuse_cuda_global_block_params& a, int, const CudaLaunch* launch) {
  if (launch)
    tell(cuda::global_block({a.shape, a.eps, a.x, a.qkv, a.qkv_bias, a.padding, a.table, a.weight, a.bias, a.out},
                            launch->stream));
  return 0;
}

int64_t make(const hifuse_cuda_window_attention_params& a, int multiprocessors, const CudaLaunch* launch) {
  const WindowAttentionShape& s = a.shape;
  const int64_t channels = s.num_heads * s.head_dim;
  if (launch)
    tell(cuda::window_attention_forward({s, contiguous(a.qkv, s.height, s.width, 3 * channels), a.bias_table, a.qkv_bias,
                                         contiguous(a.out, s.height, s.width, channels)},
                                        multiprocessors, launch->stream));
  return 0;
}

int64_t make(const hifuse_cuda_gated_concat_params& a, int multiprocessors, const CudaLaunch* launch) {
  const cuda::GatedConcat op{a.dtype,          a.batch,   a.height,    a.width,      a.channels, a.squeezed,
                             a.double_sigmoid, a.eps,     a.local_map, a.global_map, a.x,        a.filters,
                             a.filter_bias,    a.squeeze, a.expand,    a.scale,      a.shift,    a.out};
  Room room(launch);
  void* const scratch = room.take(cuda::gated_concat_scratch(op, multiprocessors));
  if (launch) tell(cuda::gated_concat(op, scratch, launch->stream));
  return room.bytes();
}

int64_t make(const hifuse_cuda_mixer_params& a, int multiprocessors, const CudaLaunch* launch) {
  if (a.sm90)
    return make_on_sm90<cuda::MixerSm90>({a.dtype, launch ? a.batch : 0, a.height, a.width, a.channels, a.z, a.weight, a.out},
                                         multiprocessors, launch);
  Room room(launch);
  if (a.depthwise) {
    if (launch)
      tell(cuda::mixer_depthwise({a.dtype, a.batch, a.height, a.width, a.channels, a.z, a.weight, a.z, true, nullptr, a.out},
                                 launch->stream));
    return 0;
  }
  cuda::Product p = product_of_map(a.dtype, a.batch, a.height, a.width, a.z, a.channels);
  p.source = cuda::Source::taps, p.weight = a.weight, p.columns = a.channels;
  p.activation = Activation::gelu, p.residual = a.z, p.out = a.out;
  multiply(p, room, multiprocessors, launch);
  return room.bytes();
}

int64_t make(const hifuse_cuda_mlp_params& a, int multiprocessors, const CudaLaunch* launch) {
  const int64_t size = c::bytes_of(a.dtype), rows = a.batch * a.rows;
  if (a.sm90)
    return make_on_sm90<cuda::MlpSm90>({a.dtype, launch ? rows : 0, a.depth, a.hidden, a.columns, a.u, a.expand, a.expand_bias,
                                        a.project, a.project_bias, a.residual, a.out},
                                       multiprocessors, launch);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t most = std::max<int64_t>(1, kHiddenBytes / (a.hidden * size * kTileRows));
  const int64_t parts = std::max<int64_t>(1, (tiles + most - 1) / most);
  const int64_t longest = std::min((tiles + parts - 1) / parts * kTileRows, rows);
  Room room(launch);
  void* const hidden = room.take(bytes_of(a.dtype, {longest, a.hidden}));
  const auto at = [size](const void* map, int64_t row, int64_t channels) -> const void* {
    return map ? static_cast<const char*>(map) + row * channels * size : nullptr;
  };
  const auto halves = [&](int64_t first, int64_t count) {
    cuda::Product expand = product_of_map(a.dtype, count, 1, 1, at(a.u, first, a.depth), a.depth);
    expand.weight = a.expand, expand.bias = a.expand_bias, expand.columns = a.hidden;
    expand.activation = Activation::gelu, expand.image_rows = a.rows, expand.out = hidden;
    cuda::Product project = product_of_map(a.dtype, count, 1, 1, hidden, a.hidden);
    project.weight = a.project, project.bias = a.project_bias, project.columns = a.columns, project.image_rows = a.rows;
    project.residual = at(a.residual, first, a.columns);
    project.out = const_cast<void*>(at(a.out, first, a.columns));
    return std::pair{expand, project};
  };
  // All parts but the last one are as long. That one may take more: tiles of the longer ones may be enough for the device.
  int64_t sums = 0;
  for (const int64_t count : {longest, longest ? rows % longest : 0}) {
    const auto [expand, project] = halves(0, count);
    sums = std::max(sums, sums_of({expand, project}, multiprocessors));
  }
  void* const place = room.take(sums);
  for (int64_t first = 0; launch && first < rows; first += longest) {
    const auto [expand, project] = halves(first, std::min(longest, rows - first));
    multiply(expand, place, multiprocessors, *launch);
    multiply(project, place, multiprocessors, *launch);
  }
  return room.bytes();
}

int64_t make(const hifuse_mean_params& a, int, const CudaLaunch* launch) {
  if (launch) tell(cuda::mean({a.dtype, a.batch, a.pixels, a.channels, a.x, a.out}, launch->stream));
  return 0;
}

void widen_on_device(const void* from, DType dtype, int64_t count, float* to, void* stream) {
  tell(cuda::widen({dtype, count, from, to}, stream));
}

}  // namespace hifuse::c
