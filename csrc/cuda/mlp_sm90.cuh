// The MLP of a few channels on sm_90a, in one kernel: its hidden units are never in memory.
//
// A block has rows of u in shared memory, some for each warpgroup that multiplies. Weights come through the ring, for kHidden
// units at a time: first as rows of expand, whose products become, with GELU, the left operand of the next products in the
// registers where they are; then as columns of project.
#pragma once
#include "product_sm90.cuh"

namespace hifuse::cuda {

struct MlpParams {
  TensorMap u, expand, project;
  const unsigned char* expand_bias;
  Finish finish;
  int hidden;
};

// For up to kDepth numbers of a row of u, and up to kColumns results; the copy engine fills up with zeros. A warpgroup has kM
// times 64 rows: each block reads all weights, so that more rows are fewer reads, and as many more accumulators.
template <class T, int kDepth, int kColumns, int kM, int kHidden, int kStages>
struct MlpKernel {
  static constexpr const char* kName = "mlp_sm90";
  static constexpr int kReaders = 2, kThreads = (1 + kReaders) * kWarpgroup, kBlocks = 1;
  static constexpr int kRows = kReaders * kM * kRowsOfWarpgroup, kUnits = kHidden, kMostColumns = kColumns;
  static constexpr int kSlabs = (kDepth + kSlab - 1) / kSlab, kHiddenSlabs = kHidden / kSlab;
  static constexpr int kWide = 96, kParts = kColumns / kWide;  // columns of a product
  using Weights = Slab<(kHidden > kColumns ? kHidden : kColumns)>;
  using Params = MlpParams;
  struct Shared {
    Slab<kRows> u[kSlabs];
    Ring<Weights, kStages, kReaders> ring;
  };
  static_assert(kDepth % kProductDepth == 0 && kColumns % kWide == 0);
  // A slab of u is filled with the first weights that it is multiplied with. When these have a free stage, a stage has been
  // given back that was filled after the last weights of the rows before, and so the slab has been read too.
  static_assert(kStages <= kSlabs + kHiddenSlabs);

  static __device__ __forceinline__ void run(const Params& p, Shared& shared) { run_warpgroups<MlpKernel>(p, shared); }

  static __device__ __forceinline__ void copy(const Params& p, Shared& shared) {
    Writer<Weights, kStages, kReaders> writer{shared.ring};
    for (int64_t row = int64_t(blockIdx.x) * kRows; row < p.finish.rows; row += int64_t(gridDim.x) * kRows)
      for (int unit = 0; unit < p.hidden; unit += kHidden) {
        for (int i = 0; i < kSlabs; ++i)
          writer.fill(Slab<kHidden>::kBytes + (unit == 0 ? Slab<kRows>::kBytes : 0), [&](Weights& weights, uint64_t* full) {
            if (unit == 0) copy_tile(shared.u[i].bytes, &p.u, i * kSlab, int(row), full);
            copy_tile(weights.bytes, &p.expand, i * kSlab, unit, full);
          });
        for (int i = 0; i < kHiddenSlabs; ++i)
          writer.fill(Slab<kColumns>::kBytes, [&](Weights& weights, uint64_t* full) {
            copy_tile(weights.bytes, &p.project, unit + i * kSlab, 0, full);
          });
      }
  }

  static __device__ __forceinline__ void multiply(const Params& p, Shared& shared) {
    Reader<Weights, kStages, kReaders> reader{shared.ring};
    const int own = (int(threadIdx.x) / kWarpgroup - 1) * kM * kRowsOfWarpgroup;
    for (int64_t row = int64_t(blockIdx.x) * kRows; row < p.finish.rows; row += int64_t(gridDim.x) * kRows) {
      float out[kM][kParts][kWide / 2] = {};
      for (int unit = 0; unit < p.hidden; unit += kHidden) {
        float hidden[kM][kHidden / 2];
#pragma unroll
        for (int i = 0; i < kSlabs; ++i)
          reader.multiply([&](Weights& weights) {
#pragma unroll
            for (int k = 0; k < kSlab && i * kSlab + k < kDepth; k += kProductDepth)
#pragma unroll
              for (int m = 0; m < kM; ++m)
                wgmma<T, kHidden>(hidden[m], describe(shared.u[i].row(own + m * kRowsOfWarpgroup), k),
                                  describe(weights.bytes, k), i + k > 0);
          });
        reader.finish();
#pragma unroll
        for (int m = 0; m < kM; ++m) settle(hidden[m]);
#pragma unroll
        for (int i = 0; i < kHiddenSlabs; ++i)
          reader.multiply([&](Weights& weights) {
#pragma unroll
            for (int m = 0; m < kM; ++m) {  // GELU of some operands goes on beside the products of those before
              uint32_t a[kSlab / kProductDepth][4];
              activate(a, &hidden[m][i * kSlab / 2], p.expand_bias, unit + i * kSlab);
              wgmma_fence();
#pragma unroll
              for (int k = 0; k < kSlab; k += kProductDepth)
#pragma unroll
                for (int part = 0; part < kParts; ++part)
                  wgmma<T, kWide>(out[m][part], a[k / kProductDepth], describe(weights.row(part * kWide), k), true);
            }
          });
      }
      reader.finish();
#pragma unroll
      for (int m = 0; m < kM; ++m)
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          settle(out[m][part]);
          finish<T, kWide, Activation::none>(p.finish, out[m][part], int(row) + own + m * kRowsOfWarpgroup, part * kWide);
        }
    }
  }

  // Left operands out of the accumulators of 64 hidden units, from unit `unit` on: a thread has the same rows and columns of
  // both.
  static __device__ __forceinline__ void activate(uint32_t (&a)[kSlab / kProductDepth][4], const float* hidden,
                                                  const unsigned char* bias, int unit) {
    const int column = unit + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < kSlab / 8; ++n) {
      const float2 b = pair_at<T>(bias, column + 8 * n);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float* const x = &hidden[4 * n + 2 * half];
        a[n / 2][n % 2 * 2 + half] = pack<T>(gelu<T>(x[0] + b.x), gelu<T>(x[1] + b.y));
      }
    }
  }
};

}  // namespace hifuse::cuda
