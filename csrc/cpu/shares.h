// How the tasks of a region are shared between its threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace hifuse {

// A thread first takes the tasks of its own share, in order: neighbours in number have neighbouring rows or weights, and what
// one task asks for ahead then serves the next one of the same core. When it has done these, it helps with the shares of the
// others, so none waits for another that is slower.
//
// The same object serves one region after another, its `round`. A thread may come late, when tasks of the next round are being
// dealt already: it gets none of them, because a task is taken by a compare-and-exchange that names the round.
class Shares {
 public:
  static constexpr int64_t kNone = -1;
  static constexpr int64_t kMostTasks = INT32_MAX;

  // Tasks [0, count), count >= 1, in a share for each of `threads`. All tasks of the round before have been taken.
  void deal(int64_t count, int64_t threads, uint32_t round) {
    const int64_t shares = std::min(threads, kMost);
    count_.store(count, std::memory_order_relaxed);
    shares_.store(shares, std::memory_order_relaxed);
    for (int64_t i = 0; i < shares; ++i) {
      const auto size = static_cast<uint64_t>(count * (i + 1) / shares - count * i / shares);
      share_[i].left.store(uint64_t{round} << 32 | size, std::memory_order_release);
    }
  }

  // A task of the round for thread `thread`, or kNone where all have been taken. What the thread has read before, it has read
  // while the round was under way: the caller of a round waits for every task that was taken.
  int64_t take(int64_t thread, uint32_t round) {
    const int64_t count = count_.load(std::memory_order_relaxed), shares = shares_.load(std::memory_order_relaxed);
    for (int64_t i = 0; i < shares; ++i) {
      const int64_t at = (thread + i) % shares, end = count * (at + 1) / shares;
      uint64_t left = share_[at].left.load(std::memory_order_relaxed);
      while (left >> 32 == round && static_cast<uint32_t>(left) > 0)
        if (share_[at].left.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel, std::memory_order_relaxed))
          return end - static_cast<uint32_t>(left);
    }
    return kNone;
  }

 private:
  static constexpr int64_t kMost = 64;
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};  // the round, and below it the number of tasks that nobody has taken
  };

  std::atomic<int64_t> count_{0};
  std::atomic<int64_t> shares_{1};
  Share share_[kMost];
};

}  // namespace hifuse
