// The border between C and the library: messages in place of exceptions, a caller's threads in place of ours.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <new>
#include <sstream>
#include <stdexcept>

#include "cpu/kernels.h"
#include "hifuse/hifuse.h"

namespace hifuse::c {

// What a caller or a file says that cannot be.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Refused(message.str());
}

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) refuse(parts...);
}

// A message that stays valid until this thread's next one.
const char* keep(const char* message) noexcept;

// body(), and NULL or the message of what it throws.
template <class Body>
const char* guarded(const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "there is not enough memory";
  } catch (const std::length_error&) {
    return "there is not enough memory";
  } catch (const std::exception& error) {
    return keep(error.what());
  } catch (...) {
    return "an error without a message";
  }
}

// The threads of a caller, as kernels are lent them. What a task throws is thrown again by the thread of the call.
class Lent {
 public:
  explicit Lent(const hifuse_threads* threads) : threads_(threads) {
    require(!threads || threads->count >= 1, "threads->count must be at least 1, got ", threads ? threads->count : 0);
    require(!threads || threads->run, "threads->run must not be NULL");
  }

  Parallel parallel() { return {threads_ ? std::min(threads_->count, kMostThreads) : 1, this, run}; }

 private:
  static constexpr int64_t kMostThreads = 1 << 16;  // that work is cut for

  struct Round {
    int64_t count;
    void* context;
    void (*body)(void*, int64_t);
    std::atomic<int64_t> done{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error{};  // of the first task that failed, who wrote `failed`

    static void task(void* work, int64_t index) noexcept {
      Round& round = *static_cast<Round*>(work);
      try {
        require(index >= 0 && index < round.count, "threads->run must call the task for indices below ", round.count,
                " alone, got ", index);
        if (!round.failed.load(std::memory_order_relaxed)) round.body(round.context, index);
      } catch (...) {
        if (!round.failed.exchange(true)) round.error = std::current_exception();
      }
      round.done.fetch_add(1, std::memory_order_acq_rel);
    }
  };

  static void run(void* lender, int64_t count, void* context, void (*body)(void*, int64_t)) {
    const hifuse_threads* const threads = static_cast<Lent*>(lender)->threads_;
    if (!threads) {
      for (int64_t index = 0; index < count; ++index) body(context, index);
      return;
    }
    if (count == 0) return;
    Round round{count, context, body};
    threads->run(threads->context, count, Round::task, &round);
    const int64_t done = round.done.load(std::memory_order_acquire);
    if (round.error) std::rethrow_exception(round.error);
    require(done == count, "threads->run must call the task once for each of ", count, " indices, and did so ", done, " times");
  }

  const hifuse_threads* threads_;
};

}  // namespace hifuse::c
