// Matrices from shared memory, and products on tensor cores: which lane holds what.
#include <ptx.cuh>

#include "run.h"

namespace hifuse::conformance {
namespace {

using namespace cuda;

template <bool kTransposed>
struct Ldmatrix {
  static constexpr const char* kName = "ldmatrix";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    const uint32_t* in;  // [32, 4]
    uint32_t* out;
  };
  struct Shared {
    alignas(16) uint32_t rows[32][4];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int lane = threadIdx.x;
    for (int i = 0; i < 4; ++i) s.rows[lane][i] = p.in[lane * 4 + i];
    __syncwarp();
    uint32_t r[4];
    const void* row = s.rows[lane * 11 % 32];  // not in order
    if constexpr (kTransposed)
      ldmatrix_x4_transposed(r, row);
    else
      ldmatrix_x4(r, row);
    for (int i = 0; i < 4; ++i) p.out[lane * 4 + i] = r[i];
  }
};

struct Bf16 {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16<bf16>(d, a, b0, b1);
  }
};
struct F16 {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k16<f16>(d, a, b0, b1);
  }
};
struct Tf32 {
  static __device__ void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_m16n8k8_tf32(d, a, b0, b1);
  }
};

// Every register of every lane has a number of its own, so that a wrong layout gives a wrong result.
template <class Type>
struct Mma {
  static constexpr const char* kName = "mma";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    const uint32_t* in;  // [32, 6]
    float* out;          // [32, 4]
  };
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    const uint32_t* mine = p.in + threadIdx.x * 6;
    const uint32_t a[4] = {mine[0], mine[1], mine[2], mine[3]};
    float d[4] = {1.0f, 2.0f, 3.0f, 4.0f};
    for (int i = 0; i < 2; ++i) Type::multiply(d, a, mine[4], mine[5]);
    for (int i = 0; i < 4; ++i) p.out[threadIdx.x * 4 + i] = d[i];
  }
};

template <class Type>
void add_product(std::vector<Case>& cases, const char* name, const std::vector<uint32_t>& in) {
  Buffer<uint32_t> from(in);
  Buffer<float> to(128);
  run<Mma<Type>>(1, {from.data(), to.data()});
  cases.push_back({name, 0.0, words_of(to.values())});
}

std::vector<uint32_t> small_tf32() {
  std::vector<uint32_t> all;
  for (const uint16_t half : small_numbers(32 * 6, true, 6)) all.push_back(static_cast<uint32_t>(half) << 16);
  for (size_t i = 0; i < all.size(); i += 3) all[i] |= 0x1fff;  // which is ignored
  return all;
}

}  // namespace

void add_matrices(std::vector<Case>& cases) {
  Buffer<uint32_t> from(random_words(128)), to(128);
  run<Ldmatrix<false>>(1, {from.data(), to.data()});
  cases.push_back({"ldmatrix_x4", 0.0, to.values()});
  run<Ldmatrix<true>>(1, {from.data(), to.data()});
  cases.push_back({"ldmatrix_x4_transposed", 0.0, to.values()});
  add_product<Bf16>(cases, "mma_m16n8k16 bf16", words_of(small_numbers(32 * 12, true, 4)));
  add_product<F16>(cases, "mma_m16n8k16 f16", words_of(small_numbers(32 * 12, false, 5)));
  add_product<Tf32>(cases, "mma_m16n8k8_tf32", small_tf32());
}

}  // namespace hifuse::conformance
