// The list of calls that a frozen network's file carries: which op reads and writes which maps, with which tensors and numbers.
// hifuse_fast/inference/calls.py wrote it. It holds for every batch and size.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "c/border.h"
#include "c/file.h"

namespace hifuse::c {

// A map [batch, height / per, width / per, channels], where height and width are those of the images, up to whole strides; with
// per = 0 it has one pixel. Maps of one slot have the same memory, one after another.
struct MapOf {
  int64_t slot;
  int64_t per;
  int64_t channels;

  bool operator==(const MapOf&) const = default;
};

// What one run of the calls works on.
struct Frame {
  const hifuse_images& images;
  int64_t strides[4];  // of the images
  int64_t height;      // whole strides
  int64_t width;
  int multiprocessors;  // of the device; 0 of a CPU
  std::vector<char*> slots;

  int64_t rows(const MapOf& map) const { return map.per ? height / map.per : 1; }
  int64_t columns(const MapOf& map) const { return map.per ? width / map.per : 1; }
  char* at(const MapOf& map) const { return slots[static_cast<size_t>(map.slot)]; }
};

// What makes calls: lent threads of a CPU, or a stream of a device with scratch memory and counters, see cuda_ops.h.
struct Runner {
  Parallel parallel{};
  void* stream = nullptr;
  void* scratch = nullptr;
  uint32_t* counters = nullptr;
};

// Checks a call of the frame, and makes it unless `runner` is null. Returns how many bytes of scratch memory it takes.
using Step = std::function<int64_t(const Frame& frame, const Runner* runner)>;

// Reads a call of an op, whose arguments are checked: cpu_calls.cpp and cuda_calls.cpp.
class Reader;
using StepOf = Step(const std::string& op, Reader& reader, int64_t in_chans);
StepOf cpu_step, cuda_step;

class Calls {
 public:
  static constexpr int64_t kStride = 32;  // height and width of the frame are multiples of it

  Calls() = default;
  // `list`: of the file's metadata. Tensors are of `file`, which has been read. Refused where a call does not fit.
  Calls(const Json& list, const File& file, DType dtype, int64_t in_chans, StepOf* step_of, int multiprocessors = 0);

  // How many bytes each slot takes for images of such a frame.
  std::vector<int64_t> slot_sizes(int64_t batch, int64_t height, int64_t width) const;

  // How many bytes of scratch memory the calls take, one after another. Checks them.
  int64_t scratch_size(const Frame& frame) const;

  // Makes all calls.
  void run(const Frame& frame, const Runner& runner) const;

  int multiprocessors() const { return multiprocessors_; }

  // The map that the last call writes: of one pixel.
  const MapOf& result() const { return written_.back(); }

 private:
  DType dtype_ = DType::float32;
  int multiprocessors_ = 0;
  std::vector<Step> steps_;
  std::vector<MapOf> written_;  // by the calls, in their order
};

}  // namespace hifuse::c
