#include "c/cuda_network.h"

#include <algorithm>

#include "c/checks.h"
#include "c/cuda_ops.h"
#include "c/device.h"
#include "cuda/kernels.h"

namespace hifuse::c {
namespace {

void* take_of_cuda(void*, int64_t bytes, void* stream) { return device::take(bytes, stream); }
void give_to_cuda(void*, void* memory, void* stream) { device::give(memory, stream); }

int64_t up_to_whole(int64_t bytes) { return (bytes + device::kAlignment - 1) / device::kAlignment * device::kAlignment; }

// For the launches of this thread within its life.
class Early {
 public:
  explicit Early(bool early) { cuda::begin_early = early; }
  ~Early() { cuda::begin_early = false; }
  Early(const Early&) = delete;
  Early& operator=(const Early&) = delete;
};

// From the first to the last element of images, in elements.
int64_t extent(const hifuse_images& images, const Frame& frame, int64_t in_chans) {
  const int64_t sizes[] = {images.batch, in_chans, images.height, images.width};
  int64_t last = 0;
  for (int i = 0; i < 4; ++i) {
    require(frame.strides[i] >= 0, "images.strides must not be negative on a CUDA device, got ", frame.strides[i]);
    require(
        !__builtin_add_overflow(last, product_of("images", {sizes[i] - 1, frame.strides[i]}), &last) && last < INT64_MAX / 64,
        "images is too large");
  }
  return last + 1;
}

}  // namespace

OnDevice::OnDevice(int device, const hifuse_cuda_memory* memory)
    : device_(device), memory_(memory ? *memory : hifuse_cuda_memory{nullptr, take_of_cuda, give_to_cuda}) {
  require(memory_.take && memory_.give, "memory->take and memory->give must not be NULL");
  device::check_index(device);
  const device::Scope scope(device);
  multiprocessors_ = device::multiprocessors();
}

OnDevice::~OnDevice() {
  const char* const unsaid = guarded([&] {
    const device::Scope scope(device_);
    device::wait_for_all();
    for (auto& [stream, lane] : lanes_) give(lane->maps, nullptr);
    for (auto& visit : visits_) {
      for (Block* const block : {&visit->lane.maps, &visit->images, &visit->results}) give(*block, nullptr);
      if (visit->stream) device::end_stream(visit->stream);
    }
    give(weights_, nullptr);
  });
  static_cast<void>(unsaid);  // the device is lost, and its memory
}

bool OnDevice::grow(Block& block, int64_t bytes, void* stream) {
  if (bytes <= block.bytes) return false;
  require(!device::is_captured(stream),
          "the first run of a batch and size takes memory, which cannot be captured: make one run",
          " of it on this stream before");
  give(block, stream);
  void* const taken = memory_.take(memory_.context, bytes, stream);
  require(taken, "there is not enough memory on the device, for ", bytes, " bytes");
  if (reinterpret_cast<uintptr_t>(taken) % device::kAlignment) {
    memory_.give(memory_.context, taken, stream);
    refuse("memory->take must give memory from a multiple of ", device::kAlignment, " bytes on");
  }
  block = {static_cast<char*>(taken), bytes};
  return true;
}

void OnDevice::give(Block& block, void* stream) noexcept {
  if (block.data) memory_.give(memory_.context, block.data, stream);
  block = {};
}

const char* OnDevice::load(const Memory& weights) {
  const device::Scope scope(device_);
  grow(weights_, weights.bytes(), nullptr);
  device::copy_in(weights_.data, weights.data(), weights.bytes(), nullptr);
  // Whether the library has kernels for this device is said now.
  Block tried;
  grow(tried, device::kAlignment, nullptr);
  const char* const error = guarded([&] {
    widen_on_device(weights_.data, DType::float32, 1, reinterpret_cast<float*>(tried.data), nullptr);
    device::wait(nullptr);
  });
  give(tried, nullptr);
  require(!error, "device ", device_, " cannot run the kernels of this library: ", error ? error : "");
  return weights_.data;
}

void OnDevice::run(const hifuse_network& network, const hifuse_images& images, float* results, void* stream) {
  Lane* lane = nullptr;
  {
    const std::lock_guard guard(lock_);
    auto& found = lanes_[stream];
    if (!found) found = std::make_unique<Lane>();
    lane = found.get();
  }
  const device::Scope scope(device_);
  run_on(*lane, network, images, results, stream);
}

void OnDevice::run_on(Lane& lane, const hifuse_network& network, const hifuse_images& images, float* results, void* stream) {
  Frame frame = frame_of(network, images);
  const Layout layout = layout_of(network, frame);
  if (images.batch == 0) return;
  // The calls are checked where no memory has been taken yet: their places are numbers.
  layout.place(frame, reinterpret_cast<char*>(device::kAlignment));
  // One behind the other: counters, maps, scratch memory.
  const int64_t counted = counters_on(multiprocessors_), maps = up_to_whole(counted);
  int64_t first = 0, bytes = 0;
  require(!__builtin_add_overflow(layout.bytes, maps + device::kAlignment, &first), "images is too large");
  first = up_to_whole(first - device::kAlignment);
  require(!__builtin_add_overflow(first, network.calls.scratch_size(frame), &bytes) && bytes <= INT64_MAX / 2,
          "images is too large");

  const std::lock_guard guard(lane.lock);  // runs of a stream are put on it one after another
  if (grow(lane.maps, bytes, stream)) device::clear(lane.maps.data, counted, stream);  // once: launches leave zeros
  frame.slots.clear();
  layout.place(frame, lane.maps.data + maps);
  Runner runner;
  runner.stream = stream, runner.scratch = lane.maps.data + first;
  runner.counters = reinterpret_cast<uint32_t*>(lane.maps.data);
  const Early early(begin_early);
  network.calls.run(frame, runner);
  const MapOf& result = network.calls.result();
  widen_on_device(frame.at(result), network.dtype, images.batch * result.channels, results, stream);
  device::check_launches();
}

void OnDevice::run_for_host(const hifuse_network& network, const hifuse_images& images, float* results) {
  const device::Scope scope(device_);
  Visit* mine = nullptr;
  {
    const std::lock_guard guard(lock_);
    if (idle_.empty()) {
      visits_.push_back(std::make_unique<Visit>());
      idle_.reserve(visits_.size());
      visits_.back()->stream = device::make_stream();
      mine = visits_.back().get();
    } else {
      mine = idle_.back();
      idle_.pop_back();
    }
  }
  struct Back {
    OnDevice& network;
    Visit* visit;
    ~Back() {
      const std::lock_guard guard(network.lock_);
      network.idle_.push_back(visit);
    }
  } back{*this, mine};
  visit(*mine, network, images, results);
}

void OnDevice::visit(Visit& v, const hifuse_network& network, const hifuse_images& images, float* results) {
  if (images.batch == 0) return;
  const Frame frame = frame_of(network, images);
  const int64_t bytes = extent(images, frame, network.in_chans) * bytes_of(images.dtype);
  const int64_t outputs = network.calls.result().channels, of_results = product_of("results", {images.batch, outputs, 4});
  grow(v.images, bytes, v.stream);
  grow(v.results, of_results, v.stream);
  device::copy_in(v.images.data, images.data, bytes, v.stream);
  hifuse_images there = images;
  there.data = v.images.data;
  run_on(v.lane, network, there, reinterpret_cast<float*>(v.results.data), v.stream);
  device::copy_out(results, v.results.data, of_results, v.stream);
  device::wait(v.stream);
}

}  // namespace hifuse::c

using namespace hifuse;
using namespace hifuse::c;

const char* hifuse_network_open_cuda(const char* path, int32_t device, const hifuse_cuda_memory* memory,
                                     hifuse_network** network) {
  return guarded([&] {
    require(network, "network must not be NULL");
    *network = nullptr;
    require(path, "path must not be NULL");
    auto opened = std::make_unique<hifuse_network>();
    opened->device = std::make_unique<OnDevice>(device, memory);
    const c::device::Scope scope(device);  // calls are checked for it as they are read
    read_network(path, *opened);
    *network = opened.release();
  });
}

const char* hifuse_network_run_cuda(hifuse_network* network, const hifuse_images* images, float* results, void* stream) {
  return guarded([&] {
    require(network, "network must not be NULL");
    require(network->device != nullptr, "network must be of hifuse_network_open_cuda");
    check_images(*network, images);
    require(results, "results must not be NULL");
    network->device->run(*network, *images, results, stream);
  });
}
