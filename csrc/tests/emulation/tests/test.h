// What the tests of the emulation need.
#pragma once
#include <initializer_list>
#include <launch.cuh>
#include <ptx.cuh>
#include <string>
#include <vector>

#include "../../check.h"

namespace hifuse::emulation::tests {

// Device memory, poisoned, that launches may use as long as it lives.
template <class T>
class Device {
 public:
  explicit Device(size_t count, bool writable = true) : values_(count) {
    std::memset(static_cast<void*>(values_.data()), 0xff, count * sizeof(T));
    allow(values_.data(), count * sizeof(T), writable);
  }
  Device(const Device&) = delete;
  ~Device() { forget(); }
  T* data() { return values_.data(); }
  T& operator[](size_t i) { return values_[i]; }
  size_t size() const { return values_.size(); }

 private:
  std::vector<T> values_;
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

void print(const std::vector<std::string>& messages);

}  // namespace hifuse::emulation::tests
