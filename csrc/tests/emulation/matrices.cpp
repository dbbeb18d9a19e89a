// Conversions, ldmatrix and mma.sync: layouts as csrc/cuda/ptx.cuh documents them.
#include <ptx.cuh>

#include "numbers.h"
#include "report.h"

namespace hifuse::cuda {
using namespace emulation;

template <class T>
uint32_t pack(float low, float high) {
  return narrow<T>(low) | static_cast<uint32_t>(narrow<T>(high)) << 16;
}
template <class T>
float2 unpack(uint32_t r) {
  return {widen(T{static_cast<uint16_t>(r)}), widen(T{static_cast<uint16_t>(r >> 16)})};
}
template uint32_t pack<bf16>(float, float);
template uint32_t pack<f16>(float, float);
template float2 unpack<bf16>(uint32_t);
template float2 unpack<f16>(uint32_t);

uint32_t to_tf32(float x) { return std::isfinite(x) ? (to_bits(x) + 0x1000) & ~0x1fffu : to_bits(x) & ~0x1fffu; }

float exp2_fast(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}

float reciprocal_fast(float x) {
  const float y = 1.0f / (std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x);
  return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y;
}

int computed_here(int x) { return x; }

namespace {

struct LdmatrixLane {
  const void* row;
  uint32_t* r;
  Site site;
};

template <bool kTransposed>
void load_matrices(void* const* lanes) {
  const unsigned first = block.current / kWarp * kWarp;
  const void* rows[kWarp];
  for (unsigned l = 0; l < kWarp; ++l) rows[l] = static_cast<LdmatrixLane*>(lanes[l])->row;
  if (options().profile) profile::ldmatrix(rows);
  for (unsigned l = 0; l < kWarp; ++l) {
    const LdmatrixLane& lane = *static_cast<LdmatrixLane*>(lanes[l]);
    const unsigned g = l / 4, t = l % 4;
    for (unsigned i = 0; i < 4; ++i) {
      uint16_t values[2];
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = kTransposed ? 2 * t + half : g, column = kTransposed ? g : 2 * t + half;
        const auto* p = static_cast<const uint16_t*>(rows[8 * i + row]) + column;
        access(first + l, p, 2, false, lane.site);
        values[half] = *p;
      }
      lane.r[i] = values[0] | static_cast<uint32_t>(values[1]) << 16;
    }
  }
}

template <bool kTransposed>
void ldmatrix(const char* name, uint32_t (&r)[4], const void* row, Site site) {
  LdmatrixLane mine{row, r, site};
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    tell("alignment", site, nullptr,
         text("thread %u gives %s a row at %s that is not aligned to 16 bytes.", block.current, name, place(site).c_str()));
    abandon();
  }
  collectives::warp(name, &mine, load_matrices<kTransposed>, site, true);
}

struct MmaLane {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

// Rounding of the sums differs from the hardware's, whose order is not documented.
template <int kDepth>
void multiply(const float (&a)[16][kDepth], const float (&b)[kDepth][8], void* const* lanes) {
  float d[16][8] = {};
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < 8; ++column) d[row][column] += a[row][k] * b[k][column];
  for (int l = 0; l < 32; ++l)
    for (int i = 0; i < 4; ++i) static_cast<MmaLane*>(lanes[l])->d[i] += d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2];
  ++counters().products;
}

template <class T>
void multiply_halves(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int l = 0; l < 32; ++l) {
    const MmaLane& m = *static_cast<MmaLane*>(lanes[l]);
    const int g = l / 4, t = l % 4;
    for (int half = 0; half < 2; ++half) {
      const auto value = [&](uint32_t r) { return widen(T{static_cast<uint16_t>(r >> (16 * half))}); };
      for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = value(m.a[i]);
      for (int i = 0; i < 2; ++i) b[2 * t + half + i * 8][g] = value(m.b[i]);
    }
  }
  multiply<16>(a, b, lanes);
}

void multiply_tf32(void* const* lanes) {
  const auto value = [](uint32_t r) { return from_bits(r & ~0x1fffu); };
  float a[16][8], b[8][8];
  for (int l = 0; l < 32; ++l) {
    const MmaLane& m = *static_cast<MmaLane*>(lanes[l]);
    const int g = l / 4, t = l % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = value(m.a[i]);
    for (int i = 0; i < 2; ++i) b[t + i * 4][g] = value(m.b[i]);
  }
  multiply<8>(a, b, lanes);
}

}  // namespace

void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix<false>("ldmatrix_x4", r, row, HIFUSE_SITE); }
void ldmatrix_x4_transposed(uint32_t (&r)[4], const void* row) {
  ldmatrix<true>("ldmatrix_x4_transposed", r, row, HIFUSE_SITE);
}

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaLane mine{d, a, {b0, b1}};
  collectives::warp("mma_m16n8k16", &mine, multiply_halves<T>, HIFUSE_SITE, true);
}
template void mma_m16n8k16<bf16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t);
template void mma_m16n8k16<f16>(float (&)[4], const uint32_t (&)[4], uint32_t, uint32_t);

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  MmaLane mine{d, a, {b0, b1}};
  collectives::warp("mma_m16n8k8_tf32", &mine, multiply_tf32, HIFUSE_SITE, true);
}

}  // namespace hifuse::cuda
