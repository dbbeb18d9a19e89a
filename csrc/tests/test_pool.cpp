// The pool, and how many cores there are: no task is lost or done twice, no wake-up is lost, and whoever calls it gets his work
// done.
//
//     test_pool [--long]      a million regions, minutes under ThreadSanitizer
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/pool.h"

int failures = 0;

using hifuse::Pool;

namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

template <class Task>
void each(Pool& pool, int64_t count, int64_t threads, const Task& task) {
  pool.run(count, threads, const_cast<Task*>(&task), [](void* context, int64_t i) { (*static_cast<const Task*>(context))(i); });
}

// Whether a region does each of its tasks once. What tasks write is no atomic: ThreadSanitizer sees whether the caller may
// read.
bool does_each_once(Pool& pool, int64_t count, int64_t threads) {
  std::vector<int> times(static_cast<size_t>(count));
  each(pool, count, threads, [&](int64_t i) { ++times[static_cast<size_t>(i)]; });
  for (const int n : times)
    if (n != 1) return false;
  return true;
}

void test_every_task_once() {
  Pool& pool = Pool::make();
  for (const int64_t count : {0, 1, 2, 3, 7, 64, 65, 200})
    for (const int64_t threads : {1, 2, 3, 5, 80}) CHECK(does_each_once(pool, count, threads));
}

// Threads that never spin fall asleep before every region, with the largest spin they never do.
void test_no_wake_up_is_lost(int regions) {
  for (const auto spin : {microseconds(0), microseconds(1), microseconds(20)}) {
    Pool& pool = Pool::make(spin);
    for (int i = 0; i < regions; ++i) {
      std::atomic<int> done{0};
      const int64_t count = 2 + i % 5;
      each(pool, count, 2 + i % 3, [&](int64_t) { done.fetch_add(1, std::memory_order_relaxed); });
      if (done != count) {
        CHECK(done == count);
        return;
      }
      if (i % 64 == 0) std::this_thread::sleep_for(microseconds(i % 7 * 10));
    }
  }
}

// The threads that did tasks of a region in which each waits until `threads` have come.
size_t helpers_of(Pool& pool, int64_t threads) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  each(pool, threads, threads, [&](int64_t) {
    for (bool all = false; !all && std::chrono::steady_clock::now() < deadline; std::this_thread::yield()) {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
      all = seen.size() == static_cast<size_t>(threads);
    }
  });
  return seen.size();
}

void test_as_many_threads_as_asked_for() {
  Pool& pool = Pool::make();
  for (const int64_t threads : {2, 4, 3, 1, 6, 2}) CHECK(helpers_of(pool, threads) == static_cast<size_t>(threads));
}

// The caller has nothing more to do while another thread is within its task.
void test_waits_for_tasks_of_others() {
  Pool& pool = Pool::make();
  std::atomic<int> inside{0}, done{0};
  each(pool, 50, 2, [&](int64_t) {
    if (inside.fetch_add(1) == 0) std::this_thread::sleep_for(milliseconds(100));
    ++done;
  });
  CHECK(done == 50);
}

void test_callers_at_once(int rounds) {
  Pool& pool = Pool::make();
  std::atomic<int> wrong{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 8; ++caller)
    callers.emplace_back([&, caller] {
      for (int i = 0; i < rounds; ++i) wrong += !does_each_once(pool, 1 + (caller + i) % 40, 1 + i % 4);
    });
  for (std::thread& caller : callers) caller.join();
  CHECK(wrong == 0);
}

void test_nested() {
  Pool& pool = Pool::make();
  std::atomic<int> right{0};
  each(pool, 20, 3, [&](int64_t i) { right += does_each_once(pool, i, 3); });
  CHECK(right == 20);
}

void test_exceptions() {
  Pool& pool = Pool::make();
  for (int i = 0; i < 200; ++i) {
    std::atomic<int> begun{0};
    std::string message;
    try {
      each(pool, 30, 3, [&](int64_t task) {
        ++begun;
        if (task % 7 == 3) throw std::runtime_error("task " + std::to_string(task));
      });
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    CHECK(message.rfind("task ", 0) == 0 && begun >= 1);
    CHECK(does_each_once(pool, 30, 3));
  }
  bool thrown = false;  // alone, too
  try {
    each(pool, 2, 1, [](int64_t) { throw std::runtime_error("alone"); });
  } catch (const std::runtime_error&) {
    thrown = true;
  }
  CHECK(thrown);
}

// A thread rounds and flushes as its caller does, whatever it did before.
void test_floating_point_as_of_the_caller() {
#if defined(__SSE__)
  Pool& pool = Pool::make();
  const unsigned before = __builtin_ia32_stmxcsr();
  for (const unsigned flush : {0u, 0x8000u, 0u}) {
    __builtin_ia32_ldmxcsr(before | flush);
    std::atomic<int> other{0};
    each(pool, 64, 3, [&](int64_t) {
      std::this_thread::sleep_for(microseconds(50));
      other += (__builtin_ia32_stmxcsr() & 0x8000u) != flush;
    });
    CHECK(other == 0);
  }
  __builtin_ia32_ldmxcsr(before);
#endif
}

bool ends_well(const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Also while another thread is within a region, whose lock and threads the child does not have.
void test_forked_child() {
  CHECK(does_each_once(Pool::of_process(), 50, 3));
  const Pool* const ours = &Pool::of_process();
  const auto child = [&] { return &Pool::of_process() != ours && helpers_of(Pool::of_process(), 3) == 3; };
  CHECK(ends_well(child));
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) each(Pool::of_process(), 20, 3, [](int64_t) { std::this_thread::sleep_for(microseconds(100)); });
  });
  for (int i = 0; i < 20; ++i) CHECK(ends_well(child));
  stop = true;
  busy.join();
  CHECK(&Pool::of_process() == ours);
}

// A program ends while threads of the pool sleep, spin, or work for a caller that nobody waits for.
void test_end_of_the_process() {
  for (const int wait_us : {0, 20, 500})
    CHECK(ends_well([=] {
      std::thread([] {
        for (;;) each(Pool::of_process(), 20, 3, [](int64_t) {});
      }).detach();
      std::this_thread::sleep_for(microseconds(wait_us));
      exit(0);
      return true;
    }));
}

}  // namespace

int main(int argc, char** argv) {
  const bool more = argc == 2 && !std::strcmp(argv[1], "--long");
  test_cores();
  test_every_task_once();
  test_no_wake_up_is_lost(more ? 1000000 / 3 : 3000);
  test_as_many_threads_as_asked_for();
  test_waits_for_tasks_of_others();
  test_callers_at_once(more ? 20000 : 300);
  test_nested();
  test_exceptions();
  test_floating_point_as_of_the_caller();
#if !defined(__SANITIZE_THREAD__)  // which gives up in a child that starts threads
  test_forked_child();
  test_end_of_the_process();
#endif
  std::printf("pool: %d failed\n", failures);
  return failures ? 1 : 0;
}
