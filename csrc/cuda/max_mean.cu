// The largest value and the mean over the channels or over the pixels of a map. A NaN is larger than any number, and of equal
// values the first one is the largest.
#include <algorithm>
#include <climits>
#include <launch.cuh>

#include "columns.cuh"
#include "rows.cuh"

namespace hifuse::cuda {

struct Largest {
  float value = -__builtin_huge_valf();
  int place = INT_MAX;

  // Takes a value from behind the present one.
  __device__ __forceinline__ void follow(float x, int at) {
    const bool larger = !(x <= value) && value == value;
    value = larger ? x : value;
    place = larger ? at : place;
  }
  // Takes the largest of other values, from wherever.
  __device__ __forceinline__ void merge(float x, int at) {
    const bool is_nan = value != value, other_is_nan = x != x;
    const bool equal = x == value || (is_nan && other_is_nan), larger = x > value || (other_is_nan && !is_nan);
    const bool taken = larger || (equal && at < place);
    value = taken ? x : value;
    place = taken ? at : place;
  }
  __device__ __forceinline__ void merge_lane(int lanes) {
    const float x = __shfl_xor_sync(0xffffffffu, value, lanes);
    merge(x, __shfl_xor_sync(0xffffffffu, place, lanes));
  }
};

// A group of lanes, at most a warp, has a row of the map.
struct MaxMeanRows {
  int rows, channels, lanes;
  bool vectors;
};

struct MaxMeanChannels {
  static constexpr const char* kName = "max_mean_channels";
  static constexpr int kThreads = 128, kBlocks = 8;
  struct Params {
    MaxMeanRows shape;
    Typed x;
    TypedResult out;  // [rows, 2]
    int* index;       // [rows]
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const MaxMeanRows& s = p.shape;
    const int lane = threadIdx.x % s.lanes, row = blockIdx.x * (kThreads / s.lanes) + threadIdx.x / s.lanes;
    const bool kept = row < s.rows;
    Largest largest;
    if (lane * 8 < s.channels) largest.place = lane * 8;
    float sum = 0.0f;
    for (int channel = lane * 8; channel < s.channels; channel += s.lanes * 8) {
      const int left = kept ? s.channels - channel : 0;
      float x[8];
      load_eight(x, p.x, int64_t(row) * s.channels + channel, left, s.vectors);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (j < left) largest.follow(x[j], channel + j);
        sum += x[j];
      }
    }
    for (int other = s.lanes / 2; other > 0; other /= 2) {
      largest.merge_lane(other);
      sum += __shfl_xor_sync(0xffffffffu, sum, other);
    }
    if (lane > 0 || !kept) return;
    store_one(p.out, 2 * int64_t(row), largest.value);
    store_one(p.out, 2 * int64_t(row) + 1, sum / static_cast<float>(s.channels));
    p.index[row] = largest.place;
  }
};

struct MaxMeanChannelsBackward {
  static constexpr const char* kName = "max_mean_channels_backward";
  static constexpr int kThreads = 128, kBlocks = 8;
  struct Params {
    MaxMeanRows shape;
    Typed grad;  // [rows, 2]
    const int* index;
    TypedResult dx;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const MaxMeanRows& s = p.shape;
    const int lane = threadIdx.x % s.lanes, row = blockIdx.x * (kThreads / s.lanes) + threadIdx.x / s.lanes;
    if (row >= s.rows) return;
    const float of_largest = load_one(p.grad, 2 * int64_t(row)),
                of_mean = load_one(p.grad, 2 * int64_t(row) + 1) / static_cast<float>(s.channels);
    const int place = p.index[row];
    for (int channel = lane * 8; channel < s.channels; channel += s.lanes * 8) {
      float x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = channel + j == place ? of_mean + of_largest : of_mean;
      store_eight(p.dx, int64_t(row) * s.channels + channel, x, s.channels - channel, s.vectors);
    }
  }
};

// Pixels of an image go in shares of about this many, whatever the batch.
inline constexpr int kSharePixels = 8 * kColumnRows;

struct MaxMeanImages {
  int pixels, channels, slices, shares;
  bool vectors;

  __device__ __forceinline__ int begin(int share) const { return static_cast<int>(int64_t(share) * pixels / shares); }
};

// What the shares of an image have, and where the result goes.
struct MaxMeanParts {
  float* largest;  // [images, shares, channels], as the others
  float* sum;
  int* place;
  TypedResult out;  // [images, 2, channels]
  int* index;       // [images, channels]

  __device__ __forceinline__ void finish(const MaxMeanImages& s, int image, int channel, const Largest& largest,
                                         float sum) const {
    store_one(out, 2 * int64_t(image) * s.channels + channel, largest.value);
    store_one(out, (2 * int64_t(image) + 1) * s.channels + channel, sum / static_cast<float>(s.pixels));
    index[int64_t(image) * s.channels + channel] = largest.place;
  }
};

// The block (image and slice, share).
struct MaxMeanPixels {
  static constexpr const char* kName = "max_mean_pixels";
  static constexpr int kThreads = kColumnThreads, kBlocks = 6, kWarps = kThreads / 32;
  struct Params {
    MaxMeanImages shape;
    Typed x;
    MaxMeanParts parts;
  };
  struct Shared {
    float largest[kWarps][kColumnChannels], sum[kWarps][kColumnChannels];
    int place[kWarps][kColumnChannels];
  };

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) {
    const MaxMeanImages& s = p.shape;
    const int image = blockIdx.x / s.slices, share = blockIdx.y, end = s.begin(share + 1);
    const Column c(blockIdx.x % s.slices, s.channels);
    Largest largest[8];
    float sum[8] = {};
    int pixel = s.begin(share) + c.row;
    if (pixel < end)
#pragma unroll
      for (int j = 0; j < 8; ++j) largest[j].place = pixel;
#pragma unroll 2
    for (; pixel < end; pixel += kColumnRows) {
      float x[8];
      load_eight(x, p.x, (int64_t(image) * s.pixels + pixel) * s.channels + c.channel, c.left, s.vectors);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        largest[j].follow(x[j], pixel);
        sum[j] += x[j];
      }
    }
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      for (int other = kColumnLanes; other < 32; other *= 2) {
        largest[j].merge_lane(other);
        sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], other);
      }
      if (lane >= kColumnLanes) continue;
      shared.largest[warp][lane * 8 + j] = largest[j].value;
      shared.place[warp][lane * 8 + j] = largest[j].place;
      shared.sum[warp][lane * 8 + j] = sum[j];
    }
    __syncthreads();
    const int channel = c.first + lane;
    if (warp > 0 || channel >= s.channels) return;
    Largest most{shared.largest[0][lane], shared.place[0][lane]};
    float total = shared.sum[0][lane];
    for (int other = 1; other < kWarps; ++other) {
      most.merge(shared.largest[other][lane], shared.place[other][lane]);
      total += shared.sum[other][lane];
    }
    if (s.shares == 1) return p.parts.finish(s, image, channel, most, total);
    const int64_t at = (int64_t(image) * s.shares + share) * s.channels + channel;
    p.parts.largest[at] = most.value;
    p.parts.place[at] = most.place;
    p.parts.sum[at] = total;
  }
};

struct MaxMeanMerge {
  static constexpr const char* kName = "max_mean_merge";
  static constexpr int kThreads = 64, kBlocks = 16;
  struct Params {
    MaxMeanImages shape;
    MaxMeanParts parts;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const MaxMeanImages& s = p.shape;
    const int blocks = (s.channels + kThreads - 1) / kThreads, image = blockIdx.x / blocks;
    const int channel = blockIdx.x % blocks * kThreads + threadIdx.x;
    if (channel >= s.channels) return;
    Largest most;
    float total = 0.0f;
#pragma unroll 4
    for (int share = 0; share < s.shares; ++share) {
      const int64_t at = (int64_t(image) * s.shares + share) * s.channels + channel;
      most.merge(p.parts.largest[at], p.parts.place[at]);
      total += p.parts.sum[at];
    }
    p.parts.finish(s, image, channel, most, total);
  }
};

struct MaxMeanPixelsBackward {
  static constexpr const char* kName = "max_mean_pixels_backward";
  static constexpr int kThreads = kColumnThreads, kBlocks = 8;
  struct Params {
    MaxMeanImages shape;
    Typed grad;        // [images, 2, channels]
    const int* index;  // [images, channels]
    TypedResult dx;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const MaxMeanImages& s = p.shape;
    const int image = blockIdx.x / s.slices, end = s.begin(blockIdx.y + 1);
    const Column c(blockIdx.x % s.slices, s.channels);
    float of_largest[8], of_mean[8];
    int place[8];
    load_eight(of_largest, p.grad, 2 * int64_t(image) * s.channels + c.channel, c.left, s.vectors);
    load_eight(of_mean, p.grad, (2 * int64_t(image) + 1) * s.channels + c.channel, c.left, s.vectors);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      place[j] = j < c.left ? p.index[int64_t(image) * s.channels + c.channel + j] : 0;
      of_mean[j] /= static_cast<float>(s.pixels);
    }
    for (int pixel = s.begin(blockIdx.y) + c.row; pixel < end; pixel += kColumnRows) {
      float x[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] = pixel == place[j] ? of_mean[j] + of_largest[j] : of_mean[j];
      store_eight(p.dx, (int64_t(image) * s.pixels + pixel) * s.channels + c.channel, x, c.left, s.vectors);
    }
  }
};

static const char* why_not(const MaxMean& op) {
  return too_many(op.batch * op.pixels) || op.batch * slices_of(op.channels) > INT_MAX ? kTooMany : nullptr;
}

static MaxMeanRows rows_of(const MaxMean& op) {
  MaxMeanRows s{static_cast<int>(op.batch * op.pixels), static_cast<int>(op.channels), 1, op.channels % 8 == 0};
  while (s.lanes < 32 && s.lanes * 8 * 4 < s.channels) s.lanes *= 2;
  return s;
}
template <class Kernel>
static dim3 grid_of(const MaxMeanRows& s) {
  const int groups = Kernel::kThreads / s.lanes;
  return dim3((s.rows + groups - 1) / groups);
}

static MaxMeanImages images_of(const MaxMean& op) {
  const int64_t shares = std::min<int64_t>((op.pixels + kSharePixels - 1) / kSharePixels, 1024);
  return {static_cast<int>(op.pixels), static_cast<int>(op.channels), static_cast<int>(slices_of(op.channels)),
          static_cast<int>(shares), op.channels % 8 == 0};
}

int64_t max_mean_scratch(const MaxMean& op, int) {
  const int64_t shares = images_of(op).shares;
  return op.over_channels || shares == 1 ? 0 : 3 * op.batch * shares * op.channels * int64_t(sizeof(float));
}

const char* max_mean_forward(const MaxMean& op, Typed x, TypedResult out, int* index, void* scratch, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  if (op.over_channels) {
    const MaxMeanRows s = rows_of(op);
    return launch<MaxMeanChannels>(grid_of<MaxMeanChannels>(s), {s, x, out, index}, stream);
  }
  const MaxMeanImages s = images_of(op);
  const int64_t count = op.batch * s.shares * op.channels;
  float* const largest = static_cast<float*>(scratch);
  const MaxMeanParts parts{largest, largest + count, reinterpret_cast<int*>(largest + 2 * count), out, index};
  const dim3 grid(static_cast<unsigned>(op.batch * s.slices), s.shares);
  const char* error = launch<MaxMeanPixels>(grid, {s, x, parts}, stream);
  if (error || s.shares == 1) return error;
  const int blocks = (s.channels + MaxMeanMerge::kThreads - 1) / MaxMeanMerge::kThreads;
  return launch<MaxMeanMerge>(dim3(static_cast<unsigned>(op.batch * blocks)), {s, parts}, stream);
}

const char* max_mean_backward(const MaxMean& op, Typed grad, const int* index, TypedResult dx, void* stream) {
  if (const char* reason = why_not(op)) return reason;
  if (op.over_channels) {
    const MaxMeanRows s = rows_of(op);
    return launch<MaxMeanChannelsBackward>(grid_of<MaxMeanChannelsBackward>(s), {s, grad, index, dx}, stream);
  }
  const MaxMeanImages s = images_of(op);
  return launch<MaxMeanPixelsBackward>(dim3(static_cast<unsigned>(op.batch * s.slices), s.shares), {s, grad, index, dx},
                                       stream);
}

}  // namespace hifuse::cuda
