// Threads of our own, for machines on which others compute too.
//
// A thread that waits spins for as long as the next region is usually away, then sleeps, so that the system gives its core to
// whoever has work. The caller of a region works as well. It waits for tasks that were begun, and never for a thread that has
// not come: where the system has taken a thread off its core, the others do its share.
//
// One region at a time has the threads. A caller who finds them taken, or is itself within a task, runs its tasks alone.
#pragma once

#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <vector>

#include "cpu/shares.h"

namespace hifuse {

class Pool {
 public:
  using Body = void (*)(void* context, int64_t task);

  // How long a thread spins: between two ops of a network pass some 10 us, and a thread that sleeps comes 20 to 45 us late
  // (csrc/tests/bench_pool.cpp shows the trade).
  static constexpr std::chrono::microseconds kSpin{50};

  // A pool has as many threads as it was ever asked for, and is never destroyed: they may still look at it when the process
  // ends.
  static Pool& make(std::chrono::nanoseconds spin = kSpin);

  // The pool of this process. A forked child, in which there are no threads but the one that forked, has another one.
  static Pool& of_process();

  // body(context, task) for each task of [0, count), on the calling thread and up to threads - 1 others. When it returns, all
  // have been done, and what they wrote is seen. An exception of a task is thrown again here; tasks not yet begun are left out.
  void run(int64_t count, int64_t threads, void* context, Body body);

 private:
  struct Worker;

  explicit Pool(std::chrono::nanoseconds spin);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int64_t start(int64_t wanted);
  void serve(Worker& worker);
  void work(int64_t thread, uint32_t round);
  void wait();

  const std::chrono::nanoseconds spin_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;  // a caller has the threads; the rest up to `round_` is that caller's
  std::vector<std::unique_ptr<Worker>> workers_;
  std::exception_ptr error_;  // of the first task that failed, who wrote `failed_`
  uint32_t round_ = 0;

  // Of the round under way. A late thread may read them while the next round is being written, but then gets no task.
  std::atomic<void*> context_{nullptr};
  std::atomic<Body> body_{nullptr};
  std::atomic<uint32_t> float_control_{0};
  std::atomic<bool> failed_{false};
  Shares shares_;
  alignas(64) std::atomic<uint32_t> unfinished_{0};  // tasks, and kAsleep where the caller sleeps until there are none
};

}  // namespace hifuse
