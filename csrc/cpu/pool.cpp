#include "cpu/pool.h"

#include <pthread.h>
#include <signal.h>

#include <thread>
#include <utility>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace hifuse {
namespace {

// ---- Waiting for a word ----------------------------------------------------------------------------------------------------
//
// Who is about to sleep first says so in the word itself, by a compare-and-exchange or an or. Who changes the word learns by
// the same exchange whether somebody sleeps, and wakes him. The system puts nobody to sleep whose word is another one by then.
// So no wake-up is lost, and none is sent to a thread that spins.
constexpr uint32_t kAsleep = uint32_t{1} << 31;

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);  // may return early: callers look again
#else
  word.wait(value, std::memory_order_acquire);
#endif
}

void wake(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
#else
  word.notify_one();
#endif
}

void pause() {
#if defined(__SSE__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Whether done() came true within `length`.
template <class Done>
bool spin_until(Done done, std::chrono::nanoseconds length) {
  const auto end = std::chrono::steady_clock::now() + length;
  do {
    for (int i = 0; i < 16; ++i, pause())
      if (done()) return true;
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

// ---- Rounding and subnormal numbers, which torch.set_flush_denormal sets for one thread -------------------------------------
#if defined(__SSE__)
constexpr uint32_t kFlags = 0x3f;  // what has happened so far
uint32_t float_control() { return _mm_getcsr() & ~kFlags; }
void set_float_control(uint32_t control) {
  if (float_control() != control) _mm_setcsr(control);
}
#else
uint32_t float_control() { return 0; }
void set_float_control(uint32_t) {}
#endif

// ---- One pool a process ----------------------------------------------------------------------------------------------------
std::atomic<Pool*> pool_of_process{nullptr};
[[maybe_unused]] const int kForks = pthread_atfork(nullptr, nullptr, [] { pool_of_process.store(nullptr); });

}  // namespace

struct alignas(64) Pool::Worker {
  int64_t thread;                 // 1 and up; the caller is 0
  std::atomic<uint32_t> door{0};  // the last round that it was wanted in, and kAsleep where it sleeps until the next one
};

Pool::Pool(std::chrono::nanoseconds spin) : spin_(spin) {}
Pool::~Pool() = default;
Pool& Pool::make(std::chrono::nanoseconds spin) { return *new Pool(spin); }

Pool& Pool::of_process() {
  Pool* known = pool_of_process.load(std::memory_order_acquire);
  if (known) return *known;
  Pool* const fresh = &make();
  if (pool_of_process.compare_exchange_strong(known, fresh)) return *fresh;
  delete fresh;  // another caller was first; this one has no threads
  return *known;
}

void Pool::run(int64_t count, int64_t threads, void* context, Body body) {
  if (std::min(count, threads) <= 1 || count > Shares::kMostTasks || busy_.test_and_set(std::memory_order_acquire)) {
    for (int64_t task = 0; task < count; ++task) body(context, task);
    return;
  }
  const int64_t helpers = start(std::min(count, threads) - 1);
  round_ = (round_ + 1) % kAsleep;
  context_.store(context, std::memory_order_relaxed);
  body_.store(body, std::memory_order_relaxed);
  float_control_.store(float_control(), std::memory_order_relaxed);
  failed_.store(false, std::memory_order_relaxed);
  unfinished_.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
  shares_.deal(count, helpers + 1, round_);
  for (int64_t i = 0; i < helpers; ++i)
    if (workers_[i]->door.exchange(round_, std::memory_order_acq_rel) & kAsleep) wake(workers_[i]->door);
  work(0, round_);
  wait();
  const std::exception_ptr error = std::exchange(error_, nullptr);
  busy_.clear(std::memory_order_release);
  if (error) std::rethrow_exception(error);
}

// Starts threads until there are `wanted`; returns how many of these there are, fewer where the system has no more.
int64_t Pool::start(int64_t wanted) {
  while (static_cast<int64_t>(workers_.size()) < wanted) {
    sigset_t all, before;  // signals are for the threads of the program
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started = true;
    try {
      workers_.reserve(workers_.size() + 1);
      auto worker = std::make_unique<Worker>();
      worker->thread = static_cast<int64_t>(workers_.size()) + 1;
      std::thread([this, its = worker.get()] { serve(*its); }).detach();
      workers_.push_back(std::move(worker));
    } catch (const std::exception&) {  // no memory, or no more threads for this process
      started = false;
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (!started) break;
  }
  return std::min(wanted, static_cast<int64_t>(workers_.size()));
}

void Pool::serve(Worker& worker) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), "hifuse");
#endif
  std::atomic<uint32_t>& door = worker.door;
  for (uint32_t seen = 0;;) {
    uint32_t now = seen;
    const auto changed = [&] { return (now = door.load(std::memory_order_acquire)) != seen; };
    if (!spin_until(changed, spin_) && door.compare_exchange_strong(now, seen | kAsleep, std::memory_order_acq_rel))
      while ((now = door.load(std::memory_order_acquire)) == (seen | kAsleep)) sleep_while(door, seen | kAsleep);
    seen = now;
    work(worker.thread, seen);
  }
}

// Does tasks until all have been taken.
void Pool::work(int64_t thread, uint32_t round) {
  for (;;) {
    void* const context = context_.load(std::memory_order_relaxed);
    const Body body = body_.load(std::memory_order_relaxed);
    const uint32_t control = float_control_.load(std::memory_order_relaxed);
    const int64_t task = shares_.take(thread, round);
    if (task == Shares::kNone) return;
    set_float_control(control);
    try {
      if (!failed_.load(std::memory_order_relaxed)) body(context, task);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == (kAsleep | 1)) wake(unfinished_);
  }
}

// Until the tasks that others have taken are done.
void Pool::wait() {
  const auto done = [&] { return unfinished_.load(std::memory_order_acquire) == 0; };
  if (spin_until(done, spin_)) return;
  uint32_t left = unfinished_.fetch_or(kAsleep, std::memory_order_acq_rel) | kAsleep;
  while (left != kAsleep) {
    sleep_while(unfinished_, left);
    left = unfinished_.load(std::memory_order_acquire);
  }
}

}  // namespace hifuse
