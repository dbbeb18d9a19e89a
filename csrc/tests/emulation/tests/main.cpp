// The emulation's own tests: what each twin does, by hand, and that each kind of mistake is caught.
#include <cstdio>
#include <string>
#include <vector>

#include "../../check.h"

int failures = 0;

namespace hifuse::emulation::tests {
void print(const std::vector<std::string>& messages) {
  for (const auto& m : messages) std::printf("  %s\n", m.c_str());
}
void test_mistakes();
}  // namespace hifuse::emulation::tests

int main() {
  using namespace hifuse::emulation::tests;
  test_mistakes();
  std::printf("emulation: %d failed\n", failures);
  return failures ? 1 : 0;
}
