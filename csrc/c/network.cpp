#include "c/network.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "c/checks.h"
#include "c/cuda_network.h"
#include "c/file.h"

using namespace hifuse;
using namespace hifuse::c;

hifuse_network::hifuse_network() = default;
hifuse_network::~hifuse_network() = default;

namespace {

constexpr std::string_view kFormat = "hifuse_fast.optimized", kVersion = "10";

// What a training said of its network; the official ways where it said nothing.
void read_record(const std::string* text, int64_t outputs, hifuse_network& network) {
  const Json record = text ? parse_json(*text) : Json{};
  if (const Json* const classes = record.find("classes")) {
    for (const Json& name : classes->as_items("classes")) network.classes.push_back(name.as_text("classes"));
    const auto count = static_cast<int64_t>(network.classes.size());
    require(count == outputs, "classes must be ", outputs, " names, got ", count);
  }
  const Json* const images = record.find("images");
  const Json* const preparation = images ? images->find("preprocess") : nullptr;
  if (!preparation) return;
  const auto read = [&](const char* name, float* to) {
    const auto& values = preparation->at(name).as_items(name);
    require(values.size() == 3, name, " must be three numbers, got ", values.size());
    for (int i = 0; i < 3; ++i) to[i] = static_cast<float>(values[i].as_number(name));
  };
  read("mean", network.normalisation.mean);
  read("std", network.normalisation.std);
}

// What a file must say before its tensors are read.
const std::string& list_of_calls(const File& file) {
  const std::string* const format = file.metadata("format");
  require(format && *format == kFormat, "it was not written by OptimizedHiFuse.save");
  const std::string* const calls = file.metadata("calls");
  const std::string* const version = file.metadata("version");
  require(version && *version == kVersion, "version must be ", kVersion, ", got ", version ? *version : "none",
          ": optimise the model again");
  require(calls, "it has no list of calls, as those have whose network gives logits or features and whose ops are all of the",
          " backend \"native\" or all of \"cuda\"");
  return *calls;
}

void check_backend(const File& file, bool on_device) {
  const std::string* const found = file.metadata("backend");
  const std::string backend = found ? *found : "native";
  require(backend == "native" || backend == "cuda", "backend must be native or cuda, got ", backend);
  require((backend == "cuda") == on_device, "it was frozen for \"", backend, "\": open it by hifuse_network_open",
          backend == "cuda" ? "_cuda" : "");
}

// Whether launches may begin before those before them have ended, as the table of the device said that the file is from.
bool begins_early(const File& file) {
  const std::string* const text = file.metadata("dependent_launches");
  return text && parse_json(*text).as_flag("dependent_launches");
}

DType dtype_of(const std::string& name, bool on_device) {
  if (name == "float32") return DType::float32;
  if (name == "bfloat16") return DType::bfloat16;
  if (name == "float16" && on_device) return DType::float16;
  refuse("dtype must be float32 or bfloat16", on_device ? " or float16" : "", ", got ", name);
}

int64_t whole_strides(int64_t length) { return (length + Calls::kStride - 1) / Calls::kStride * Calls::kStride; }

}  // namespace

void hifuse::c::read_network(const char* path, hifuse_network& network) {
  File file(path);
  try {
    const Json calls = parse_json(list_of_calls(file));
    check_backend(file, network.device != nullptr);
    const std::string* const text = file.metadata("configuration");
    require(text, "its configuration is missing");
    const Json configuration = parse_json(*text);
    network.in_chans = configuration.at("in_chans").as_integer("in_chans", 1, INT32_MAX / 16);
    network.dtype = dtype_of(configuration.at("dtype").as_text("dtype"), network.device != nullptr);
    Memory weights = file.read();
    if (network.device) {
      file.move(weights.data(), network.device->load(weights));
      network.device->begin_early = begins_early(file);
      network.calls = Calls(calls, file, network.dtype, network.in_chans, cuda_step, network.device->multiprocessors());
    } else {
      network.weights = std::move(weights);
      network.calls = Calls(calls, file, network.dtype, network.in_chans, cpu_step);
    }
    read_record(file.metadata("hifuse_fast.record"), network.calls.result().channels, network);
    const int64_t classes = configuration.at("num_classes").as_integer("num_classes", 0, INT32_MAX);
    require(classes == 0 || classes == network.calls.result().channels, "num_classes must be ", network.calls.result().channels,
            ", as its list of calls says, got ", classes);
    if (network.classes.empty())
      for (int64_t i = 0; i < classes; ++i) network.classes.push_back(std::to_string(i));
  } catch (const Refused& error) {
    refuse("network ", path, ": ", error.what());
  }
}

void hifuse::c::check_images(const hifuse_network& network, const hifuse_images* images) {
  require(images, "images must not be NULL");
  require(images->dtype == DType::float32 || images->dtype == network.dtype,
          "images.dtype must be HIFUSE_FLOAT32 or that of the network, got ", static_cast<int>(images->dtype));
  require(images->data || images->batch == 0, "images.data must not be NULL");
  require(images->batch >= 0, "images.batch must be at least 0, got ", images->batch);
  for (const auto& [name, value] : {std::pair{"height", images->height}, std::pair{"width", images->width}})
    require(value >= 1 && value <= INT32_MAX, "images.", name, " must be from 1 to ", INT32_MAX, ", got ", value);
}

Frame hifuse::c::frame_of(const hifuse_network& network, const hifuse_images& images) {
  Frame frame{images, {}, whole_strides(images.height), whole_strides(images.width), network.calls.multiprocessors(), {}};
  std::copy_n(images.strides, 4, frame.strides);
  if (std::all_of(images.strides, images.strides + 4, [](int64_t stride) { return stride == 0; })) {
    const int64_t plane = product_of("images", {images.height, images.width});
    product_of("images", {images.batch, network.in_chans, plane, 4});
    const int64_t strides[] = {network.in_chans * plane, plane, images.width, 1};
    std::copy_n(strides, 4, frame.strides);
  }
  return frame;
}

Layout hifuse::c::layout_of(const hifuse_network& network, const Frame& frame) {
  Layout layout{network.calls.slot_sizes(frame.images.batch, frame.height, frame.width), kLine};
  for (const int64_t size : layout.sizes)
    require(!__builtin_add_overflow(layout.bytes, whole_lines(size), &layout.bytes) && layout.bytes <= INT64_MAX / 2,
            "images is too large");
  return layout;
}

void Layout::place(Frame& frame, char* at) const {
  for (const int64_t size : sizes) frame.slots.push_back(at), at += whole_lines(size);
}

namespace {

// The maps of one call: of the network where some are idle, and its again when the call is over.
class Borrowed {
 public:
  explicit Borrowed(hifuse_network& network) : network_(network) {
    const std::lock_guard guard(network.lock);
    if (network.idle.empty()) {
      network.idle.reserve(++network.lent);
      return;
    }
    memory = std::move(network.idle.back());
    network.idle.pop_back();
  }
  ~Borrowed() {
    const std::lock_guard guard(network_.lock);
    network_.idle.push_back(std::move(memory));
  }

  Memory memory;

 private:
  hifuse_network& network_;
};

// Of bfloat16, or of float32.
float wide(const char* from, DType dtype, int64_t index) {
  uint32_t bits = 0;
  float value;
  if (dtype == DType::float32) {
    __builtin_memcpy(&bits, from + 4 * index, 4);
  } else {
    uint16_t half;
    __builtin_memcpy(&half, from + 2 * index, 2);
    bits = uint32_t{half} << 16;
  }
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

void run(hifuse_network& network, const hifuse_images& images, float* results, const hifuse_threads* threads) {
  Lent lent(threads);
  Frame frame = frame_of(network, images);
  const Layout layout = layout_of(network, frame);
  if (images.batch == 0) return;
  Borrowed maps(network);
  maps.memory.grow(layout.bytes);
  layout.place(frame, maps.memory.data());
  network.calls.run(frame, {lent.parallel()});
  const MapOf& result = network.calls.result();
  for (int64_t i = 0; i < images.batch * result.channels; ++i) results[i] = wide(frame.at(result), network.dtype, i);
}

}  // namespace

const char* hifuse_network_open(const char* path, hifuse_network** network) {
  return guarded([&] {
    require(network, "network must not be NULL");
    *network = nullptr;
    auto opened = std::make_unique<hifuse_network>();
    read_network(path, *opened);
    *network = opened.release();
  });
}

void hifuse_network_close(hifuse_network* network) { delete network; }

const char* hifuse_network_run(hifuse_network* network, const hifuse_images* images, float* results,
                               const hifuse_threads* threads) {
  return guarded([&] {
    require(network, "network must not be NULL");
    check_images(*network, images);
    require(results, "results must not be NULL");
    if (network->device)
      network->device->run_for_host(*network, *images, results);
    else
      run(*network, *images, results, threads);
  });
}

int64_t hifuse_network_in_chans(const hifuse_network* network) { return network ? network->in_chans : 0; }
int64_t hifuse_network_outputs(const hifuse_network* network) { return network ? network->calls.result().channels : 0; }
hifuse_dtype hifuse_network_dtype(const hifuse_network* network) { return network ? network->dtype : DType::float32; }

const char* hifuse_network_class_name(const hifuse_network* network, int64_t index) {
  if (!network) return nullptr;
  const auto count = static_cast<int64_t>(network->classes.size());
  return index >= 0 && index < count ? network->classes[static_cast<size_t>(index)].c_str() : nullptr;
}

hifuse_normalisation hifuse_network_normalisation(const hifuse_network* network) {
  return network ? network->normalisation : hifuse_normalisation{};
}
