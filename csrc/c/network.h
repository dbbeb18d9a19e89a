// A network: what a file says of it, its weights, its calls, and the maps that they work on.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "c/calls.h"

namespace hifuse::c {
class OnDevice;
}

struct hifuse_network {
  hifuse_network();
  ~hifuse_network();

  int64_t in_chans = 0;
  hifuse::DType dtype = hifuse::DType::float32;
  std::vector<std::string> classes;
  hifuse_normalisation normalisation{{0.5f, 0.5f, 0.5f}, {0.5f, 0.5f, 0.5f}};
  hifuse::c::Calls calls;
  std::unique_ptr<hifuse::c::OnDevice> device;  // of a network on a CUDA device, which has its weights and maps

  // Of a network on a CPU.
  hifuse::c::Memory weights;
  std::mutex lock;
  std::vector<hifuse::c::Memory> idle;  // maps that no call works on; it has room for all that are `lent`
  size_t lent = 0;                      // at the same time, so far
};

namespace hifuse::c {

// Reads a file. Where there is a `device`, it takes the weights.
void read_network(const char* path, hifuse_network& network);

void check_images(const hifuse_network& network, const hifuse_images* images);

// The frame of images that were checked, whose maps have no place yet; and where they lie, one after another.
Frame frame_of(const hifuse_network& network, const hifuse_images& images);
struct Layout {
  std::vector<int64_t> sizes;  // of the slots, in bytes
  int64_t bytes;               // of all

  void place(Frame& frame, char* at) const;
};
Layout layout_of(const hifuse_network& network, const Frame& frame);

}  // namespace hifuse::c
