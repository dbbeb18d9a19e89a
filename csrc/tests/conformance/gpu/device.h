// Device memory and launches, on a GPU.
#pragma once
#include <cuda_runtime.h>

#include <memory>
#include <stdexcept>
#include <vector>

namespace hifuse::conformance {

constexpr const char* kWhere = "gpu";

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    check(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  explicit Buffer(size_t size) : size_(size), memory_(nullptr, cudaFree) {
    void* p = nullptr;
    check(cudaMalloc(&p, size * sizeof(T)));
    memory_.reset(static_cast<T*>(p));
    check(cudaMemset(p, 0xff, size * sizeof(T)));
  }
  T* data() const { return memory_.get(); }
  std::vector<T> values() const {
    std::vector<T> all(size_);
    check(cudaMemcpy(all.data(), data(), size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return all;
  }

 private:
  size_t size_;
  std::unique_ptr<T, decltype(&cudaFree)> memory_;
};

inline void finish() { check(cudaDeviceSynchronize()); }

}  // namespace hifuse::conformance
