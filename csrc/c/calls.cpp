#include "c/calls.h"

#include <algorithm>
#include <string>

#include "c/checks.h"
#include "c/reader.h"

namespace hifuse::c {
namespace {

// What is refused of a call of the list says which one it is.
template <class Body>
void refused_by_name(const std::string& name, const Body& body) {
  try {
    body();
  } catch (const Refused& error) {
    refuse("call ", name, ": ", error.what());
  }
}

}  // namespace

Calls::Calls(const Json& list, const File& file, DType dtype, int64_t in_chans, StepOf* step_of, int multiprocessors)
    : dtype_(dtype), multiprocessors_(multiprocessors) {
  Contents contents;
  std::vector<std::string> names;
  for (const Json& call : list.as_items("calls")) {
    std::string& name = names.emplace_back(std::to_string(names.size()));
    refused_by_name(name, [&] {
      Reader reader(call, file, dtype, contents);
      const std::string& op = reader.text("op");
      name += " of its list, " + op;
      steps_.push_back(step_of(op, reader, in_chans));
      const std::vector<MapOf>& written = reader.finish();
      written_.insert(written_.end(), written.begin(), written.end());
    });
  }
  require(!written_.empty() && result().per == 0, "its list of calls must end with a map of one pixel");
  // The rest of the checks: of the smallest images, of which nothing is read.
  struct alignas(256) Place {
    char byte;
  };
  std::vector<Place> nowhere(contents.size());
  const hifuse_images images{DType::float32, nowhere.data(), 1, kStride, kStride, {}};
  Frame frame{images, {}, kStride, kStride, multiprocessors, {}};
  for (Place& place : nowhere) frame.slots.push_back(&place.byte);
  for (size_t i = 0; i < steps_.size(); ++i) refused_by_name(names[i], [&] { steps_[i](frame, nullptr); });
}

std::vector<int64_t> Calls::slot_sizes(int64_t batch, int64_t height, int64_t width) const {
  std::vector<int64_t> sizes;
  for (const MapOf& map : written_) {
    if (map.slot >= static_cast<int64_t>(sizes.size())) sizes.resize(static_cast<size_t>(map.slot) + 1);
    const int64_t pixels = map.per ? product_of("images", {height / map.per, width / map.per}) : 1;
    const int64_t bytes = product_of("images", {batch, pixels, map.channels, bytes_of(dtype_)});
    sizes[static_cast<size_t>(map.slot)] = std::max(sizes[static_cast<size_t>(map.slot)], bytes);
  }
  return sizes;
}

int64_t Calls::scratch_size(const Frame& frame) const {
  int64_t most = 0;
  for (const Step& step : steps_) most = std::max(most, step(frame, nullptr));
  return most;
}

void Calls::run(const Frame& frame, const Runner& runner) const {
  for (const Step& step : steps_) step(frame, &runner);
}

}  // namespace hifuse::c
