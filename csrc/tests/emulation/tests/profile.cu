// Counts of bank conflicts and sectors, against counts by hand; and pipelines that were not taken round.
#include "test.h"

namespace hifuse::emulation::tests {
namespace {

using namespace cuda;

// A warp writes words that are kStride apart, and reads device memory likewise.
template <int kStride>
struct Strided {
  static constexpr const char* kName = "strided";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    const float* in;
    float* out;
  };
  struct Shared {
    float words[32 * kStride];
  };
  static __device__ void run(const Params& p, Shared& s) {
    const int lane = threadIdx.x;
    s.words[lane * kStride] = p.in[lane * kStride];
    __syncwarp();
    p.out[lane] = s.words[lane * kStride];
  }
};

struct Wide {  // chunks of 16 bytes, side by side
  static constexpr const char* kName = "wide";
  static constexpr int kThreads = 32, kBlocks = 1;
  using Params = Strided<1>::Params;
  struct Shared {
    uint4 chunks[32];
  };
  static __device__ void run(const Params& p, Shared& s) {
    s.chunks[threadIdx.x] = reinterpret_cast<const uint4*>(p.in)[threadIdx.x];
    __syncwarp();
    reinterpret_cast<uint4*>(p.out)[threadIdx.x] = s.chunks[threadIdx.x];
  }
};

template <int kRowBytes>
struct Rows {
  static constexpr const char* kName = "rows";
  static constexpr int kThreads = 32, kBlocks = 1;
  using Params = Strided<1>::Params;
  struct Shared {
    alignas(128) unsigned char bytes[32 * kRowBytes];
  };
  static __device__ void run(const Params&, Shared& s) {
    for (int i = 0; i < kRowBytes; i += 16) *reinterpret_cast<uint4*>(s.bytes + threadIdx.x * kRowBytes + i) = {};
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4(r, s.bytes + threadIdx.x * kRowBytes);
  }
};

template <class Kernel>
Counters profiled(const typename Kernel::Params& params) {
  options() = {};
  options().profile = true;
  counters() = {};
  CHECK((passes<Kernel>(1, params)));
  options() = {};
  return counters();
}

}  // namespace

void test_profile() {
  Device<float> in(32 * 8, false), out(128);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 0.0f;
  const Strided<1>::Params params{in.data(), out.data()};
  Counters c = profiled<Strided<1>>(params);
  CHECK(c.shared_requests == 2 && c.shared_conflicts == 0);
  CHECK(c.load_requests == 1 && c.load_sectors == 4 && c.load_bytes == 128);
  CHECK(c.store_requests == 1 && c.store_sectors == 4 && c.store_bytes == 128);
  c = profiled<Strided<2>>({in.data(), out.data()});
  CHECK(c.shared_requests == 2 && c.shared_conflicts == 2);  // one more turn each: two lanes a bank
  CHECK(c.load_sectors == 8);
  c = profiled<Strided<8>>({in.data(), out.data()});
  CHECK(c.shared_conflicts == 2 * 7 && c.load_sectors == 32);
  c = profiled<Wide>(params);
  CHECK(c.shared_requests == 2 && c.shared_conflicts == 0 && c.load_requests == 1 && c.load_sectors == 16);
  c = profiled<Rows<16>>(params);
  CHECK(c.ldmatrix_requests == 1 && c.ldmatrix_conflicts == 0);
  c = profiled<Rows<32>>(params);
  CHECK(c.ldmatrix_conflicts == 4);  // two of the eight rows in the same banks
  c = profiled<Rows<128>>(params);
  CHECK(c.ldmatrix_conflicts == 4 * 7);  // all eight
  c = profiled<Rows<144>>(params);
  CHECK(c.ldmatrix_conflicts == 0);
  forget();
}

namespace {

struct TwoStages {
  static constexpr const char* kName = "two_stages";
  static constexpr int kThreads = 32, kBlocks = 1;
  struct Params {
    const float* in;
    int steps;
  };
  struct Shared {
    float stage[2][kThreads];
  };
  static __device__ void run(const Params& p, Shared& s) {
    for (int i = blockIdx.x; i < p.steps; i += gridDim.x) {
      cp_async_4(&s.stage[i / gridDim.x % 2][threadIdx.x], p.in + threadIdx.x, true);
      cp_async_commit();
      cp_async_wait<0>();
    }
  }
};

}  // namespace

void test_stages() {
  Device<float> in(32, false);
  for (size_t i = 0; i < in.size(); ++i) in[i] = 0.0f;
  stages_used_once();
  CHECK((passes<TwoStages>(1, {in.data(), 3})));
  const auto found = stages_used_once();
  CHECK(found.size() == 1 && contains(found, "two_stages: copies filled bytes 128 to 256 of shared memory once"));
  CHECK((passes<TwoStages>(2, {in.data(), 7})));  // four steps for the one block, three for the other
  CHECK(stages_used_once().empty());
  CHECK((passes<TwoStages>(1, {in.data(), 3})));  // several launches count as one test
  CHECK((passes<TwoStages>(1, {in.data(), 4})));
  CHECK(stages_used_once().empty());
  CHECK((passes<TwoStages>(4, {in.data(), 4})));
  CHECK(stages_used_once().size() == 1);
  forget();
}

}  // namespace hifuse::emulation::tests
