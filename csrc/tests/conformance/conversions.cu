// Conversions and approximate functions, number by number.
#include <ptx.cuh>

#include "run.h"

namespace hifuse::conformance {
namespace {

using namespace cuda;

// out[i] = Function(in[i]), of words to as many words.
template <class Function>
struct Each {
  static constexpr const char* kName = "each";
  static constexpr int kThreads = 128, kBlocks = 1;
  struct Params {
    const uint32_t* in;
    uint32_t* out;
    int count;
  };
  struct Shared {};
  static __device__ void run(const Params& p, Shared&) {
    for (int i = blockIdx.x * kThreads + threadIdx.x; i < p.count; i += gridDim.x * kThreads) p.out[i] = Function::of(p.in[i]);
  }
};

template <class Function>
void add(std::vector<Case>& cases, const char* name, double bound, const std::vector<uint32_t>& in) {
  Buffer<uint32_t> from(in), to(in.size());
  run<Each<Function>>(4, {from.data(), to.data(), static_cast<int>(in.size())});
  cases.push_back({name, bound, to.values()});
}

template <class T>
struct Pack {  // of the number, and half of it
  static __device__ uint32_t of(uint32_t x) { return pack<T>(__uint_as_float(x), 0.5f * __uint_as_float(x)); }
};
template <class T, bool kHigh>
struct Unpack {
  static __device__ uint32_t of(uint32_t x) {
    const float2 both = unpack<T>(x);
    return __float_as_uint(kHigh ? both.y : both.x);
  }
};
struct ToTf32 {
  static __device__ uint32_t of(uint32_t x) { return to_tf32(__uint_as_float(x)); }
};
struct Exp2 {
  static __device__ uint32_t of(uint32_t x) { return __float_as_uint(exp2_fast(__uint_as_float(x))); }
};
struct Reciprocal {
  static __device__ uint32_t of(uint32_t x) { return __float_as_uint(reciprocal_fast(__uint_as_float(x))); }
};

bool is_nan(uint32_t word) { return (word & 0x7fffffff) > 0x7f800000; }

uint32_t bits(float x) {
  uint32_t word;
  std::memcpy(&word, &x, 4);
  return word;
}

// Words as float32: random ones of every size, ties and limits of the types of 16 bits, infinities; no NaN, whose bits differ.
std::vector<uint32_t> numbers() {
  auto all = random_words(20000);
  for (uint32_t exponent = 0; exponent < 256; ++exponent)
    for (const uint32_t fraction : {0u, 0x1000u, 0x3000u, 0x8000u, 0x18000u, 0x7fffffu})
      all.push_back(exponent << 23 | fraction);
  for (uint32_t& word : all)
    if (is_nan(word)) word = 0x7f800000 | (word & 0x80000000);
  return all;
}

// Every number of 16 bits but NaN, two to a word.
std::vector<uint32_t> halves(uint32_t infinity) {
  std::vector<uint32_t> all;
  for (uint32_t half = 0; half < 0x8000; ++half)
    if (half <= infinity) all.push_back(half | (0x8000 | half) << 16);
  return all;
}

std::vector<uint32_t> between(float low, float high) {
  std::vector<uint32_t> all;
  for (const uint32_t word : random_words(20000, 2))
    all.push_back(bits(low + (high - low) * static_cast<float>(word >> 8) * 0x1p-24f));
  return all;
}

}  // namespace

void add_conversions(std::vector<Case>& cases) {
  add<Pack<bf16>>(cases, "pack bf16", 0.0, numbers());
  add<Pack<f16>>(cases, "pack f16", 0.0, numbers());
  add<Unpack<bf16, false>>(cases, "unpack bf16, low", 0.0, halves(0x7f80));
  add<Unpack<bf16, true>>(cases, "unpack bf16, high", 0.0, halves(0x7f80));
  add<Unpack<f16, false>>(cases, "unpack f16, low", 0.0, halves(0x7c00));
  add<Unpack<f16, true>>(cases, "unpack f16, high", 0.0, halves(0x7c00));
  add<ToTf32>(cases, "to_tf32", 0.0, numbers());
  // The documented bounds, and one rounding of the emulation's.
  add<Exp2>(cases, "exp2_fast", 0x1p-22 + 0x1p-24, between(-125.9f, 127.9f));
  add<Exp2>(cases, "exp2_fast, zeros", 0.0, between(-1000.0f, -126.1f));
  add<Reciprocal>(cases, "reciprocal_fast", 0x1p-23 + 0x1p-24, between(0x1p-20f, 1000.0f));
}

}  // namespace hifuse::conformance
