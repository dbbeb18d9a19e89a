// What the cases share: launches, and inputs that are the same everywhere.
#pragma once
#include <cstring>
#include <launch.cuh>

#include "cases.h"
#include "device.h"

namespace hifuse::conformance {

template <class Kernel>
void run(dim3 grid, const typename Kernel::Params& params) {
  if (const char* error = cuda::launch<Kernel>(grid, params, nullptr)) throw std::runtime_error(error);
  finish();
}

// Random bits: a linear congruential generator, whose high half is used.
inline std::vector<uint32_t> random_words(size_t count, uint64_t seed = 1) {
  std::vector<uint32_t> all(count);
  for (uint32_t& word : all) word = static_cast<uint32_t>((seed = seed * 6364136223846793005u + 1442695040888963407u) >> 32);
  return all;
}

// Small integers, of which products of 64 have exact sums, in bits of a type of 16.
inline std::vector<uint16_t> small_numbers(size_t count, bool bf16, uint64_t seed) {
  // -4 to 4, from the exponent up: 0, 1, 2, 3, 4
  constexpr uint16_t kBf16[] = {0, 0x3f80, 0x4000, 0x4040, 0x4080}, kF16[] = {0, 0x3c00, 0x4000, 0x4200, 0x4400};
  std::vector<uint16_t> all;
  for (const uint32_t word : random_words(count, seed))
    all.push_back(static_cast<uint16_t>((bf16 ? kBf16 : kF16)[word >> 8 & 0xff ? (word >> 16) % 5 : 0] | (word & 1) << 15));
  return all;
}

template <class T>
std::vector<uint32_t> words_of(const std::vector<T>& values) {
  std::vector<uint32_t> all(values.size() * sizeof(T) / 4);
  std::memcpy(all.data(), values.data(), all.size() * 4);
  return all;
}

}  // namespace hifuse::conformance
