// Memory for weights and maps.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace hifuse::c {

constexpr int64_t kLine = 64;  // bytes of a line of the cache: where weights and maps begin

inline int64_t whole_lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// A block of memory, in pages of 2 MB where it is large: weights and maps are read from end to end.
class Memory {
 public:
  char* data() const { return data_.get(); }
  int64_t bytes() const { return bytes_; }

  // At least so many bytes; what was in it is lost where it has fewer.
  void grow(int64_t bytes) {
    if (bytes <= bytes_) return;
    constexpr int64_t kPage = int64_t{2} << 20;
    const int64_t unit = bytes > 2 * kPage ? kPage : kLine, whole = (bytes + unit - 1) / unit * unit;
    data_.reset();
    bytes_ = 0;
    data_.reset(static_cast<char*>(std::aligned_alloc(static_cast<size_t>(unit), static_cast<size_t>(whole))));
    if (!data_) throw std::bad_alloc();
    bytes_ = whole;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (unit == kPage) madvise(data_.get(), static_cast<size_t>(whole), MADV_HUGEPAGE);
#endif
  }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  std::unique_ptr<char, Free> data_;
  int64_t bytes_ = 0;
};

}  // namespace hifuse::c
