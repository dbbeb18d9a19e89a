// What the twins of ptx.cuh and of CUDA's own words do, against the layouts and roundings of the PTX ISA, worked out by hand.
#include <limits>

#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

void test_conversions() {
  CHECK(pack<bf16>(1.0f, -2.0f) == 0xc0003f80);
  CHECK(pack<f16>(1.0f, -2.0f) == 0xc0003c00);
  CHECK(pack<bf16>(1.0f + 0x1p-8f, 1.0f + 0x3p-8f) == 0x3f823f80);   // ties go to even
  CHECK(pack<f16>(1.0f + 0x1p-11f, 1.0f + 0x3p-11f) == 0x3c023c00);  // likewise
  CHECK(pack<f16>(65519.0f, 65520.0f) == 0x7c007bff);                // the largest number, and infinity
  CHECK(pack<f16>(0x1p-24f, 0x1p-25f) == 0x00000001);                // subnormal; a tie with zero
  CHECK(pack<f16>(0x3p-25f, 0x1p-14f - 0x1p-26f) == 0x04000002);
  CHECK(pack<bf16>(-0.0f, kInfinity) == 0x7f808000);
  CHECK(pack<bf16>(std::nanf(""), 3.4e38f) == 0x7f807fff);
  CHECK(pack<f16>(-std::nanf(""), -0.0f) == 0x80007fff);
  CHECK(unpack<bf16>(0xc0003f80).x == 1.0f && unpack<bf16>(0xc0003f80).y == -2.0f);
  CHECK(unpack<f16>(0x00017bff).x == 65504.0f && unpack<f16>(0x00017bff).y == 0x1p-24f);
  CHECK(unpack<f16>(0xfc008001).x == -0x1p-24f && unpack<f16>(0xfc008001).y == -kInfinity);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {  // there and back
    const float2 b = unpack<bf16>(bits), h = unpack<f16>(bits);
    CHECK(std::isnan(b.x) || pack<bf16>(b.x, 0.0f) == bits);
    CHECK(std::isnan(h.x) || pack<f16>(h.x, 0.0f) == bits);
  }
  CHECK(to_tf32(1.0f + 0x1p-11f) == 0x3f802000);  // ties go away from zero
  CHECK(to_tf32(-1.0f - 0x1p-11f + 0x1p-23f) == 0xbf800000);
  CHECK(to_tf32(kInfinity) == 0x7f800000);
  CHECK(exp2_fast(3.0f) == 8.0f && exp2_fast(-126.0f) == 0x1p-126f && exp2_fast(-126.5f) == 0.0f &&
        exp2_fast(-kInfinity) == 0.0f);
  CHECK(reciprocal_fast(-4.0f) == -0.25f && reciprocal_fast(0x1p-127f) == kInfinity && reciprocal_fast(0x1p127f) == 0.0f);
}

// Element (r, c) of matrix m is 64 m + 8 r + c.
template <bool kTransposed>
struct Ldmatrix {
  static constexpr const char* kName = "ldmatrix";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    uint32_t* out;
  };
  struct Shared {
    alignas(16) uint16_t matrices[4][8][8];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int lane = threadIdx.x;
    for (int i = 0; i < 8; ++i) s.matrices[lane / 8][lane % 8][i] = static_cast<uint16_t>(lane * 8 + i);
    __syncwarp();
    uint32_t r[4];
    if (kTransposed)
      ldmatrix_x4_transposed(r, s.matrices[lane / 8][lane % 8]);
    else
      ldmatrix_x4(r, s.matrices[lane / 8][lane % 8]);
    for (int i = 0; i < 4; ++i) p.out[lane * 4 + i] = r[i];
  }
};

uint32_t pair(unsigned low, unsigned high) { return low | high << 16; }

void test_ldmatrix() {
  Device<uint32_t> out(128);
  CHECK((passes_always<Ldmatrix<false>>(1, {out.data()}, out)));
  CHECK(out[0 * 4 + 0] == pair(0, 1));       // lane 0: row 0, columns 0 and 1
  CHECK(out[6 * 4 + 0] == pair(12, 13));     // lane 6: row 1, columns 4 and 5
  CHECK(out[31 * 4 + 3] == pair(254, 255));  // lane 31: row 7, columns 6 and 7 of the last matrix
  CHECK((passes_always<Ldmatrix<true>>(1, {out.data()}, out)));
  CHECK(out[0 * 4 + 0] == pair(0, 8));       // lane 0: column 0, rows 0 and 1
  CHECK(out[6 * 4 + 0] == pair(33, 41));     // lane 6: column 1, rows 4 and 5
  CHECK(out[31 * 4 + 3] == pair(247, 255));  // lane 31: column 7, rows 6 and 7 of the last matrix
  for (unsigned lane = 0; lane < 32; ++lane)
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned column = lane >> 2, row = (lane & 3) << 1;
      CHECK(out[lane * 4 + m] == pair(64 * m + 8 * row + column, 64 * m + 8 * (row + 1) + column));
    }
  forget();
}

// Each lane loads its elements by the formulas of the PTX ISA, which number elements and not registers.
template <class T>
struct Mma {
  static constexpr const char* kName = "mma";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    const float *a, *b;  // [16, 16], [16, 8]
    float* d;            // [16, 8]
  };
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    const int group = threadIdx.x >> 2, in_group = threadIdx.x % 4;
    float a[8], b[4], d[4];
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
      const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      a[i] = p.a[row * 16 + column];
    }
    for (int i = 0; i < 4; ++i) b[i] = p.b[(in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)) * 8 + group];
    for (int i = 0; i < 4; ++i) d[i] = 1000.0f;
    const uint32_t packed[4] = {pack<T>(a[0], a[1]), pack<T>(a[2], a[3]), pack<T>(a[4], a[5]), pack<T>(a[6], a[7])};
    mma_m16n8k16<T>(d, packed, pack<T>(b[0], b[1]), pack<T>(b[2], b[3]));
    for (int i = 0; i < 4; ++i) p.d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = d[i];
  }
};

struct MmaTf32 {
  static constexpr const char* kName = "mma_tf32";
  static constexpr int kThreads = 32, kBlocks = 1;
  using Params = Mma<bf16>::Params;  // [16, 8], [8, 8], [16, 8]
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    const int group = threadIdx.x >> 2, in_group = threadIdx.x % 4;
    uint32_t a[4];
    float d[4] = {1000.0f, 1000.0f, 1000.0f, 1000.0f};
    for (int i = 0; i < 4; ++i) a[i] = to_tf32(p.a[(i == 0 || i == 2 ? group : group + 8) * 8 + in_group + (i < 2 ? 0 : 4)]);
    a[0] |= 0x1fff;  // which is ignored
    mma_m16n8k8_tf32(d, a, to_tf32(p.b[in_group * 8 + group]), to_tf32(p.b[(in_group + 4) * 8 + group]));
    for (int i = 0; i < 4; ++i) p.d[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = d[i];
  }
};

template <class Kernel>
void test_product(int depth) {
  Device<float> a(16 * 16, false), b(16 * 8, false), d(16 * 8);
  for (int i = 0; i < 16 * depth; ++i) a[i] = static_cast<float>(i * 7 % 23 - 11);
  for (int i = 0; i < depth * 8; ++i) b[i] = static_cast<float>(i * 5 % 19 - 9);
  CHECK((passes_always<Kernel>(1, {a.data(), b.data(), d.data()}, d)));
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float sum = 1000.0f;
      for (int k = 0; k < depth; ++k) sum += a[row * depth + k] * b[k * 8 + column];
      CHECK(d[row * 8 + column] == sum);
    }
  forget();
}

// One product of two ones, by hand: a(9, 3) is the high half of a[1] of lane 5, b(3, 6) the high half of b0 of lane 25, and
// d(9, 6) is d[2] of lane 7.
struct OneProduct {
  static constexpr const char* kName = "one_product";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    float* out;
  };
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    const uint32_t one = pack<f16>(0.0f, 1.0f);
    const uint32_t a[4] = {0, threadIdx.x == 5 ? one : 0, 0, 0};
    float d[4] = {};
    mma_m16n8k16<f16>(d, a, threadIdx.x == 25 ? one : 0, 0);
    for (int i = 0; i < 4; ++i) p.out[threadIdx.x * 4 + i] = d[i];
  }
};

void test_one_product() {
  Device<float> out(128);
  CHECK((passes_always<OneProduct>(1, {out.data()}, out)));
  for (size_t i = 0; i < 128; ++i) CHECK(out[i] == (i == 7 * 4 + 2 ? 1.0f : 0.0f));
  forget();
}

struct Shuffles {
  static constexpr const char* kName = "shuffles";
  static constexpr int kThreads = 64, kBlocks = 1;
  struct Params {
    int* out;  // [6, 64]
  };
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    const int t = threadIdx.x, mine = t * 10;
    p.out[t] = __shfl_xor_sync(0xffffffffu, mine, 5);
    p.out[64 + t] = __shfl_sync(0xffffffffu, mine, 3 + t % 2);
    p.out[128 + t] = __shfl_down_sync(0xffffffffu, mine, 4);
    p.out[192 + t] = __shfl_up_sync(0xffffffffu, mine, 4);
    p.out[256 + t] = __any_sync(0xffffffffu, t == 40);
    p.out[320 + t] = __all_sync(0xffffffffu, t != 40);
  }
};

void test_shuffles() {
  Device<int> out(6 * 64);
  CHECK((passes_always<Shuffles>(1, {out.data()}, out)));
  for (int t = 0; t < 64; ++t) {
    const int lane = t % 32, first = t / 32 * 32;
    CHECK(out[t] == (first + (lane ^ 5)) * 10);
    CHECK(out[64 + t] == (first + 3 + t % 2) * 10);
    CHECK(out[128 + t] == (lane < 28 ? t + 4 : t) * 10);
    CHECK(out[192 + t] == (lane >= 4 ? t - 4 : t) * 10);
    CHECK(out[256 + t] == (t >= 32) && out[320 + t] == (t < 32));
  }
  forget();
}

// Copies of 16 and 4 bytes, some of which are zeros.
struct Copies {
  static constexpr const char* kName = "copies";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    const float* in;  // [32, 5]
    float* out;
  };
  struct Shared {
    alignas(16) float rows[kThreads][4];
    float single[kThreads];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int t = threadIdx.x;
    cp_async_16(s.rows[t], p.in + t * 4, t % 3 != 0);
    cp_async_commit();
    cp_async_4(&s.single[t], p.in + 128 + t, t % 2 != 0);
    cp_async_commit();
    cp_async_wait<1>();
    for (int i = 0; i < 4; ++i) p.out[t * 5 + i] = s.rows[t][i];
    cp_async_wait<0>();
    p.out[t * 5 + 4] = s.single[t];
  }
};

void test_copies() {
  Device<float> in(160, false), out(160);
  for (size_t i = 0; i < 160; ++i) in[i] = static_cast<float>(i + 1);
  CHECK((passes_always<Copies>(1, {in.data(), out.data()}, out)));
  for (int t = 0; t < 32; ++t) {
    for (int i = 0; i < 4; ++i) CHECK(out[t * 5 + i] == (t % 3 ? static_cast<float>(t * 4 + i + 1) : 0.0f));
    CHECK(out[t * 5 + 4] == (t % 2 ? static_cast<float>(129 + t) : 0.0f));
  }
  forget();
}

}  // namespace

void test_layouts() {
  test_conversions();
  test_ldmatrix();
  test_product<Mma<bf16>>(16);
  test_product<Mma<f16>>(16);
  test_product<MmaTf32>(8);
  test_one_product();
  test_shuffles();
  test_copies();
}

}  // namespace hifuse::emulation::tests
