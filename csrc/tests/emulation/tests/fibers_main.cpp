// The fibers of CPUs for which there is no switch of our own, on this one.
#include "test.h"

int failures = 0;

int main() {
  hifuse::emulation::tests::test_fibers();
  std::printf("fibers: %d failed\n", failures);
  return failures ? 1 : 0;
}
