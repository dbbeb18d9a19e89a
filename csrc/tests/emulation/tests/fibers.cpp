// Fibers take turns, keep their own stacks and registers, and can be made anew.
#include "fibers.h"

#include "test.h"

namespace hifuse::emulation::tests {
namespace {

constexpr unsigned kCount = 5, kTurns = 4;
unsigned running = 0;
std::vector<unsigned> log;

void count_turns() {
  const unsigned me = running;
  const double mine = 1.0 / (me + 1);
  double sum = 0.0;
  for (unsigned turn = 0; turn < kTurns; ++turn) {
    CHECK(running == me && fibers::own(&sum));
    log.push_back(me);
    sum += mine;
    fibers::yield(me);
  }
  CHECK(sum > 3.99 / (me + 1) && sum < 4.01 / (me + 1));
  log.push_back(me + 100);
  fibers::yield(me);
}

}  // namespace

void test_fibers() {
  for (int round = 0; round < 2; ++round) {
    log.clear();
    fibers::prepare(kCount, count_turns);
    for (unsigned turn = 0; turn <= kTurns; ++turn)
      for (unsigned i = kCount; i-- > 0;) fibers::resume(running = i);
    CHECK(log.size() == kCount * (kTurns + 1));
    for (size_t i = 0; i < log.size(); ++i) CHECK(log[i] == kCount - 1 - i % kCount + (i / kCount == kTurns ? 100 : 0));
  }
  int here = 0;
  CHECK(!fibers::own(&here));
}

}  // namespace hifuse::emulation::tests
