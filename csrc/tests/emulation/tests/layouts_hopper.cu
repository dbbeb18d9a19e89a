// What the twins of ptx_hopper.cuh do, against the PTX ISA: boxes and their swizzle, im2col, the fragments of warpgroup
// products.
#include <ptx_hopper.cuh>

#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;

// One box into shared memory, and out again as it lies there.
struct Box {
  static constexpr const char* kName = "box";
  static constexpr int kThreads = 128, kBlocks = 1, kRows = 16;
  struct Params {
    TensorMap map;
    int c, x, y, n, dx, dy;
    uint16_t* out;  // [kRows, 64]
  };
  struct Shared {
    alignas(1024) uint16_t box[kRows * 64];
    uint64_t bar;
  };
  static __device__ void run(const Params& p, Shared& s) {
    if (threadIdx.x == 0) {
      mbarrier_init(&s.bar, 1);
      fence_mbarrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      mbarrier_expect(&s.bar, sizeof s.box);
      if (p.n < 0)
        copy_tile(s.box, &p.map, p.x, p.y, &s.bar);
      else
        copy_pixels(s.box, &p.map, p.c, p.x, p.y, p.n, p.dx, p.dy, &s.bar);
    }
    mbarrier_wait(&s.bar, 0);
    for (int i = threadIdx.x; i < kRows * 64; i += kThreads) p.out[i] = s.box[i];
  }
};

// Where number k of row r lies: the chunks of row 3, for instance, are in the order 3, 2, 1, 0, 7, 6, 5, 4.
size_t at(size_t r, size_t k) { return r * 64 + ((k / 8) ^ (r % 8)) * 8 + k % 8; }

void test_tiles() {
  constexpr int kRows = 20, kColumns = 72;
  Device<uint16_t> in(kRows * kColumns, false), out(16 * 64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i + 1);
  Box::Params p{{}, 0, 16, 8, -1, 0, 0, out.data()};
  CHECK(!map_matrix(p.map, in.data(), kRows, kColumns, kColumns, 16));
  CHECK((passes_always<Box>(1, p, out)));
  CHECK(out[0] == 8 * 72 + 16 + 1);             // row 0 begins with (row 8, column 16)
  CHECK(out[64 + 8] == 9 * 72 + 16 + 1);        // the first chunk of row 1 is the second in memory
  CHECK(out[3 * 64] == 11 * 72 + 16 + 24 + 1);  // row 3 begins with its chunk 3
  for (int r = 0; r < 16; ++r)
    for (int k = 0; k < 64; ++k) {
      const int row = 8 + r, column = 16 + k;
      const bool inside = row < kRows && column < kColumns;
      CHECK(out[at(r, k)] == (inside ? static_cast<uint16_t>(row * kColumns + column + 1) : 0));
    }
  CHECK(map_matrix(p.map, in.data() + 1, kRows, kColumns, kColumns, 16));  // not aligned
  CHECK(map_matrix(p.map, in.data(), kRows, kColumns, kColumns + 1, 16));
  CHECK(map_matrix(p.map, in.data(), kRows, kColumns, kColumns, 257));
  forget();
}

void test_pixels() {
  constexpr int kImages = 2, kHeight = 3, kWidth = 4, kChannels = 72;
  Device<uint16_t> in(kImages * kHeight * kWidth * kChannels, false), out(16 * 64);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i + 1);
  for (int tap = 0; tap < 9; ++tap) {
    // Sixteen pixels from pixel 5 on, each for the tap (tap / 3, tap % 3) of a 3x3 filter around it.
    Box::Params p{{}, 16, 5 % kWidth - 1, 5 / kWidth - 1, 0, tap % 3, tap / 3, out.data()};
    CHECK(!map_images(p.map, in.data(), kImages, kHeight, kWidth, kChannels, 16));
    CHECK((passes_always<Box>(1, p, out)));
    for (int r = 0; r < 16; ++r) {
      const int pixel = 5 + r, n = pixel / 12, y = pixel / kWidth % kHeight + tap / 3 - 1, x = pixel % kWidth + tap % 3 - 1;
      const bool on_image = n < kImages && y >= 0 && y < kHeight && x >= 0 && x < kWidth;
      for (int k = 0; k < 64; ++k) {
        const int c = 16 + k;
        const bool inside = on_image && c < kChannels;
        CHECK(out[at(r, k)] == (inside ? static_cast<uint16_t>(((n * kHeight + y) * kWidth + x) * kChannels + c + 1) : 0));
      }
    }
  }
  forget();
}

// d = a b^T over 64 numbers of depth, in four steps; from shared memory, or with a in registers.
template <class T, int N, bool kRegisters>
struct Product {
  static constexpr const char* kName = "product";
  static constexpr int kThreads = 128, kBlocks = 1;
  struct Params {
    const uint16_t *a, *b;  // [64, 64], [N, 64]
    float* d;               // [64, N]
  };
  struct Shared {
    alignas(1024) uint16_t a[64 * 64];
    alignas(1024) uint16_t b[N * 64];
  };
  static __device__ int place(int r, int k) { return r * 64 + ((k / 8) ^ (r % 8)) * 8 + k % 8; }
  static __device__ void run(const Params& p, Shared& s) {
    const int warp = threadIdx.x / 32, group = threadIdx.x % 32 / 4, in_group = threadIdx.x % 4;
    for (int i = threadIdx.x; i < 64 * 64; i += kThreads) s.a[place(i / 64, i % 64)] = p.a[i];
    for (int i = threadIdx.x; i < N * 64; i += kThreads) s.b[place(i / 64, i % 64)] = p.b[i];
    fence_async_shared();
    __syncthreads();
    float d[N / 2];
    for (float& x : d) x = -1.0f;
    wgmma_fence();
    for (int k = 0; k < 64; k += 16) {
      if constexpr (kRegisters) {
        uint32_t a[4];
        for (int i = 0; i < 4; ++i) {
          const uint16_t* from = p.a + (warp * 16 + group + i % 2 * 8) * 64 + k + in_group * 2 + i / 2 * 8;
          a[i] = from[0] | static_cast<uint32_t>(from[1]) << 16;
        }
        wgmma<T, N>(d, a, describe(s.b, k), k > 0);
      } else {
        wgmma<T, N>(d, describe(s.a, k), describe(s.b, k), k > 0);
      }
    }
    wgmma_commit();
    wgmma_wait<0>();
    // The PTX ISA: d(row, column) of element i.
    for (int i = 0; i < N / 2; ++i) {
      const int row = warp * 16 + group + (i % 4 < 2 ? 0 : 8), column = i / 4 * 8 + in_group * 2 + (i & 1);
      p.d[row * N + column] = d[i];
    }
  }
};

template <class T, int N, bool kRegisters>
void test_product() {
  Device<uint16_t> a(64 * 64, false), b(N * 64, false);
  Device<float> d(64 * N);
  std::vector<float> x(64 * 64), y(N * 64);
  for (size_t i = 0; i < x.size(); ++i) a[i] = static_cast<uint16_t>(pack<T>(x[i] = static_cast<float>(i * 7 % 23) - 11, 0));
  for (size_t i = 0; i < y.size(); ++i) b[i] = static_cast<uint16_t>(pack<T>(y[i] = static_cast<float>(i * 5 % 19) - 9, 0));
  CHECK((passes_always<Product<T, N, kRegisters>>(1, {a.data(), b.data(), d.data()}, d)));
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < N; ++column) {
      float sum = 0.0f;
      for (int k = 0; k < 64; ++k) sum += x[row * 64 + k] * y[column * 64 + k];
      CHECK(d[row * N + column] == sum);
    }
  forget();
}

}  // namespace

void test_layouts_hopper() {
  test_tiles();
  test_pixels();
  test_product<bf16, 64, false>();
  test_product<f16, 96, true>();
  test_product<f16, 128, false>();
  test_product<bf16, 144, true>();
}

}  // namespace hifuse::emulation::tests
