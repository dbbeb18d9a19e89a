// Device memory and launches, in the emulation.
#pragma once
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "emulation.h"

namespace hifuse::conformance {

constexpr const char* kWhere = "emulation";

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    std::memcpy(data(), values.data(), size_ * sizeof(T));
  }
  explicit Buffer(size_t size)
      : size_(size), memory_(static_cast<T*>(std::aligned_alloc(1024, (size * sizeof(T) + 1023) / 1024 * 1024)), std::free) {
    std::memset(data(), 0xff, size * sizeof(T));
    emulation::allow(data(), size * sizeof(T), true);
  }
  T* data() const { return memory_.get(); }
  std::vector<T> values() const { return {data(), data() + size_}; }

 private:
  size_t size_;
  std::unique_ptr<T, decltype(&std::free)> memory_;
};

inline void finish() {
  if (const auto found = emulation::errors(); !found.empty()) throw std::runtime_error(found.front());
}

}  // namespace hifuse::conformance
