#include "bindings/threads.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/pool.h"

namespace hifuse {
namespace {

int64_t torch_threads() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

void run_on_torch(void*, int64_t count, void* context, void (*body)(void*, int64_t)) {
  if (count == 0) return;
  const int64_t helping = std::min(torch_threads(), count);
  Shares shares;
  shares.deal(count, helping, 0);
  torch::stable::parallel_for(0, helping, 1, [&](int64_t thread, int64_t) {
    for (int64_t task = shares.take(thread, 0); task != Shares::kNone; task = shares.take(thread, 0)) body(context, task);
  });
}

thread_local int64_t lent = 0;

void run_on_pool(void*, int64_t count, void* context, void (*body)(void*, int64_t)) {
  Pool::of_process().run(count, lent, context, body);
}

}  // namespace

Parallel threads() {
  if (lent) return {lent, nullptr, run_on_pool};
  return {torch_threads(), nullptr, run_on_torch};
}

int64_t lend_threads(int64_t count) {
  if (count < 0) throw std::invalid_argument("threads must be at least 0, got " + std::to_string(count));
  return std::exchange(lent, count);
}

}  // namespace hifuse
