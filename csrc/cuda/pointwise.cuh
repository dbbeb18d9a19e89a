// What is done with each number by itself, beside the library's products: GELU and its derivative in the backward, and the
// depthwise convolution of the mixer.
#pragma once
#include <launch.cuh>

#include "activation.cuh"
#include "product_rows.cuh"

namespace hifuse::cuda {

// A chunk of numbers from memory, zeros beyond `count`; and one to memory.
template <class T>
__device__ __forceinline__ void read_chunk(float (&x)[kOfChunk<T>], const unsigned char* from, int count, bool aligned) {
  if (aligned) {
    unpack_chunk<T>(x, *reinterpret_cast<const uint4*>(from));
  } else {
#pragma unroll
    for (int e = 0; e < kOfChunk<T>; ++e) x[e] = e < count ? number<T>(reinterpret_cast<const Bits<T>*>(from)[e]) : 0.0f;
  }
}
template <class T>
__device__ __forceinline__ void write_chunk(unsigned char* to, const float (&x)[kOfChunk<T>], int count, bool aligned) {
  const uint4 chunk = pack_chunk<T>(x);
  if (aligned) {
    *reinterpret_cast<uint4*>(to) = chunk;
  } else {
    const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
    for (int e = 0; e < kOfChunk<T>; ++e)
      if (e < count)
        reinterpret_cast<Bits<T>*>(to)[e] = static_cast<Bits<T>>(kIsFloat32<T> ? words[e % 4] : words[e / 2 % 4] >> e % 2 * 16);
  }
}

// dz = grad gelu'(z), and gelu(z) where there is a place for it. A thread has a chunk.
template <class T>
struct GeluBackward {
  static constexpr const char* kName = "gelu_backward";
  static constexpr int kThreads = 256, kBlocks = 4;
  struct Params {
    const unsigned char *grad, *z;
    unsigned char *dz, *activated;
    int64_t length;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const int64_t at = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kOfChunk<T>, byte = at * int(sizeof(T));
    if (at >= p.length) return;
    const int count = static_cast<int>(min(p.length - at, int64_t(kOfChunk<T>)));
    const bool whole = count == kOfChunk<T>;
    float z[kOfChunk<T>], grad[kOfChunk<T>];
    read_chunk<T>(z, p.z + byte, count, whole);
    read_chunk<T>(grad, p.grad + byte, count, whole);
#pragma unroll
    for (int e = 0; e < kOfChunk<T>; ++e) grad[e] *= gelu_derivative<T>(z[e]);
    write_chunk<T>(p.dz + byte, grad, count, whole);
    if (p.activated == nullptr) return;
#pragma unroll
    for (int e = 0; e < kOfChunk<T>; ++e) z[e] = gelu<T>(z[e]);
    write_chunk<T>(p.activated + byte, z, count, whole);
  }
};

// out = added + activation(conv(z)), 3x3 with zero padding, each channel by itself. A thread has a chunk of a pixel.
template <class T>
struct DepthwiseMixer {
  static constexpr const char* kName = "mixer_depthwise";
  static constexpr int kThreads = 128, kBlocks = 4;
  struct Params {
    const unsigned char *z, *added;  // [pixels, channels]; null for zeros
    const unsigned char* weight;     // [9, channels]
    unsigned char *out, *before;
    int64_t pixels;
    int height, width, channels, chunks;
    bool gelu, aligned;
  };
  struct Shared {};

  static __device__ __forceinline__ void run(const Params& p, Shared&) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x, pixel = i / p.chunks;
    if (pixel >= p.pixels) return;
    const int channel = int(i % p.chunks) * kOfChunk<T>, count = min(p.channels - channel, kOfChunk<T>);
    const int x = int(pixel % p.width), y = int(pixel / p.width % p.height);
    const auto byte = [&](int64_t row) { return (row * p.channels + channel) * int(sizeof(T)); };
    float sum[kOfChunk<T>] = {};
#pragma unroll
    for (int tap = 0; tap < 9; ++tap) {
      const int dy = tap / 3 - 1, dx = tap % 3 - 1;
      float z[kOfChunk<T>] = {}, weight[kOfChunk<T>];  // zeros off the map, which times NaN are NaN
      if (unsigned(y + dy) < unsigned(p.height) && unsigned(x + dx) < unsigned(p.width))
        read_chunk<T>(z, p.z + byte(pixel + dy * p.width + dx), count, p.aligned);
      read_chunk<T>(weight, p.weight + byte(tap), count, p.aligned);
#pragma unroll
      for (int e = 0; e < kOfChunk<T>; ++e) sum[e] += z[e] * weight[e];
    }
    if (p.before != nullptr) write_chunk<T>(p.before + byte(pixel), sum, count, p.aligned);
    float added[kOfChunk<T>] = {};
    if (p.added != nullptr) read_chunk<T>(added, p.added + byte(pixel), count, p.aligned);
#pragma unroll
    for (int e = 0; e < kOfChunk<T>; ++e) sum[e] = added[e] + (p.gelu ? gelu<T>(sum[e]) : sum[e]);
    write_chunk<T>(p.out + byte(pixel), sum, count, p.aligned);
  }
};

}  // namespace hifuse::cuda
