// Runs the unit tests of one instruction set: test_avx2 avx2. Exit code 77, "skipped", where this CPU does not run it.
#include <algorithm>
#include <cstdio>

#include "check.h"
#include "cpu/isa.h"

int failures = 0;

int main(int argc, char** argv) {
  const auto usable = hifuse::isa::usable();
  if (argc != 2 || std::find(usable.begin(), usable.end(), argv[1]) == usable.end()) {
    std::printf("this CPU does not run %s\n", argc == 2 ? argv[1] : "(no instruction set named)");
    return 77;
  }
  test_geometry();
  test_int8();
  test_products();
  test_vec();
  std::printf("%s: %d failed\n", argv[1], failures);
  return failures ? 1 : 0;
}
