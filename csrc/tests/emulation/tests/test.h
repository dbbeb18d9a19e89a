// What the tests of the emulation need.
#pragma once
#include <initializer_list>
#include <launch.cuh>
#include <memory>
#include <ptx.cuh>
#include <string>
#include <vector>

#include "../../check.h"

namespace hifuse::emulation::tests {

void test_fibers();
void test_layouts();
void test_layouts_hopper();
void test_mistakes();
void test_mistakes_hopper();
void test_device_memory();
void test_profile();
void test_stages();

// Device memory, aligned to 1024 bytes and poisoned, which launches may use until `forget`.
template <class T>
class Device {
 public:
  explicit Device(size_t count, bool writable = true)
      : count_(count), values_(static_cast<T*>(std::aligned_alloc(1024, (count * sizeof(T) + 1023) / 1024 * 1024)), std::free) {
    std::memset(static_cast<void*>(data()), 0xff, count * sizeof(T));
    allow(data(), count * sizeof(T), writable);
  }
  T* data() const { return values_.get(); }
  T& operator[](size_t i) { return data()[i]; }
  size_t size() const { return count_; }
  std::vector<unsigned char> bytes() const {
    const auto* first = reinterpret_cast<const unsigned char*>(data());
    return {first, first + count_ * sizeof(T)};
  }

 private:
  size_t count_;
  std::unique_ptr<T, decltype(&std::free)> values_;
};

// All ways to run a launch: three orders by two landings.
inline std::vector<Options> all_runs() {
  std::vector<Options> all;
  for (const Order order : {Order::forward, Order::reverse, Order::random})
    for (const Landing landing : {Landing::late, Landing::early}) all.push_back({order, landing});
  return all;
}

inline bool contains(const std::vector<std::string>& messages, const std::string& words) {
  for (const auto& m : messages)
    if (m.find(words) != std::string::npos) return true;
  return false;
}

// Whether a launch passes; prints what was found if it does not.
template <class Kernel>
bool passes(dim3 grid, const typename Kernel::Params& params) {
  const char* refused = cuda::launch<Kernel>(grid, params, nullptr);
  const auto found = errors();
  for (const auto& m : found) std::printf("  %s\n", m.c_str());
  return !refused && found.empty();
}

// Whether the checks find the mistake, told in these words, in all six runs.
template <class Kernel>
bool caught(const char* words, dim3 grid, const typename Kernel::Params& params) {
  bool all = true;
  for (const Options& run : all_runs()) {
    options() = run;
    cuda::launch<Kernel>(grid, params, nullptr);
    const auto found = errors();
    if (contains(found, words)) continue;
    all = false;
    std::printf("  not found: %s\n", words);
    for (const auto& m : found) std::printf("  instead: %s\n", m.c_str());
  }
  options() = {};
  return all;
}

// Whether a launch passes in all six runs, with equal bits in `out`.
template <class Kernel, class T>
bool passes_always(dim3 grid, const typename Kernel::Params& params, Device<T>& out) {
  std::vector<unsigned char> first;
  bool all = true;
  for (const Options& run : all_runs()) {
    options() = run;
    std::memset(static_cast<void*>(out.data()), 0xff, out.size() * sizeof(T));
    all &= passes<Kernel>(grid, params);
    if (first.empty()) first = out.bytes();
    all &= first == out.bytes();
  }
  options() = {};
  return all;
}

}  // namespace hifuse::emulation::tests
