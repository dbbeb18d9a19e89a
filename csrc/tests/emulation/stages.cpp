// Whether a test took the stages of a pipeline round: how often asynchronous copies fill a place of shared memory in a block.
#include <algorithm>
#include <map>
#include <utility>

#include "report.h"
#include "shared_memory.h"

namespace hifuse::emulation {
namespace {

constexpr size_t kPlace = 4;  // bytes: the smallest copy

std::vector<uint32_t> fills;  // of the block
bool any = false;

struct Seen {
  std::string name;
  std::vector<uint32_t> most;  // fills in one block
};
std::map<void (*)(const void*, void*), Seen> kernels;

}  // namespace

namespace stages {

void start() {
  fills.assign(grid.kernel.shared_bytes / kPlace + 1, 0);
  any = false;
}

void fill(const void* shared, size_t size) {
  const auto at =
      static_cast<size_t>(static_cast<const std::byte*>(shared) - static_cast<const std::byte*>(shared_memory::data()));
  for (size_t i = at / kPlace; i < (at + size) / kPlace; ++i) ++fills[i];
  any = true;
}

void finish_block() {
  if (!any) return;
  Seen& seen = kernels[grid.kernel.run];
  seen.name = grid.kernel.name;
  seen.most.resize(fills.size(), 0);
  for (size_t i = 0; i < fills.size(); ++i) seen.most[i] = std::max(seen.most[i], fills[i]);
}

}  // namespace stages

std::vector<std::string> stages_used_once() {
  std::vector<std::string> all;
  for (const auto& [run, seen] : kernels)
    for (size_t i = 0; i < seen.most.size(); ++i) {
      if (seen.most[i] != 1) continue;
      size_t end = i;
      while (end < seen.most.size() && seen.most[end] == 1) ++end;
      all.push_back(
          text("%s: copies filled bytes %zu to %zu of shared memory once in a block and never again; give a block more work.",
               seen.name.c_str(), i * kPlace, end * kPlace));
      i = end;
    }
  kernels.clear();
  return all;
}

}  // namespace hifuse::emulation
