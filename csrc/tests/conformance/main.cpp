// Runs all cases and writes what came out: conformance FILE. tools/conformance.py compares the files of a GPU and the
// emulation.
//
// A line is a case: its bound, how many words there are, the words in hexadecimal, and its name.
#include <cinttypes>
#include <cstdio>
#include <exception>

#include "cases.h"

int main(int argc, char** argv) {
  using namespace hifuse::conformance;
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  std::vector<Case> cases;
  try {
    add_conversions(cases);
    add_copies(cases);
    add_matrices(cases);
#ifdef HIFUSE_HOPPER
    add_hopper(cases);
#endif
  } catch (const std::exception& error) {
    std::fprintf(stderr, "behind case \"%s\": %s\n", cases.empty() ? "none" : cases.back().name.c_str(), error.what());
    return 1;
  }
  std::FILE* file = std::fopen(argv[1], "w");
  if (!file) {
    std::perror(argv[1]);
    return 1;
  }
  for (const Case& each : cases) {
    std::fprintf(file, "%a %zu ", each.bound, each.words.size());
    for (const uint32_t word : each.words) std::fprintf(file, "%08" PRIx32, word);
    std::fprintf(file, " %s\n", each.name.c_str());
  }
  const bool written = std::fclose(file) == 0;
  std::printf("%zu cases written to %s\n", cases.size(), argv[1]);
  return written ? 0 : 1;
}
