// Conformance: each function of ptx.cuh and ptx_hopper.cuh as a small kernel, with the same inputs on a GPU and in the
// emulation.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace hifuse::conformance {

struct Case {
  std::string name;
  double bound;                 // 0: equal bits; else the words are float32, and this is their largest relative difference
  std::vector<uint32_t> words;  // what came out
};

void add_conversions(std::vector<Case>& cases);
void add_copies(std::vector<Case>& cases);
void add_matrices(std::vector<Case>& cases);
void add_hopper(std::vector<Case>& cases);  // only where the code is for sm_90a

}  // namespace hifuse::conformance
