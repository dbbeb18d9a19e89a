// The emulation's own tests: what each twin does, by hand, and that each kind of mistake is caught.
#include "test.h"

int failures = 0;

int main() {
  using namespace hifuse::emulation::tests;
  test_fibers();
  test_layouts();
  test_layouts_hopper();
  test_mistakes();
  test_mistakes_hopper();
  test_device_memory();
  test_profile();
  test_stages();
  std::printf("emulation: %d failed\n", failures);
  return failures ? 1 : 0;
}
