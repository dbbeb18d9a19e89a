// Reads the arguments of one call of a file's list, by name. Each is checked as it is read; `finish` says what is left.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "c/calls.h"
#include "c/checks.h"

namespace hifuse::c {

// What the slots hold while a list is read: a call may read no other map than the one that was written last.
using Contents = std::vector<std::optional<MapOf>>;

class Reader {
 public:
  Reader(const Json& call, const File& file, DType dtype, Contents& contents)
      : call_(call), file_(file), dtype_(dtype), contents_(contents) {}

  DType dtype() const { return dtype_; }

  const std::string& text(const char* name) { return take(name).as_text(name); }
  bool flag(const char* name) { return take(name).as_flag(name); }
  int64_t integer(const char* name, int64_t least, int64_t most) { return take(name).as_integer(name, least, most); }
  float number(const char* name) { return static_cast<float>(take(name).as_number(name)); }
  double wide_number(const char* name) { return take(name).as_number(name); }

  template <class Enumeration>
  Enumeration choice(const char* name, Enumeration last) {
    return static_cast<Enumeration>(integer(name, 0, static_cast<int64_t>(last)));
  }

  MapOf read(const char* name) { return read(name, take(name)); }

  std::optional<MapOf> read_or_none(const char* name) {
    const Json& value = take(name);
    if (value.kind == Json::Kind::null) return std::nullopt;
    return read(name, value);
  }

  std::vector<MapOf> read_some(const char* name, size_t most) {
    const auto& values = take(name).as_items(name);
    require(!values.empty() && values.size() <= most, name, " must be 1 to ", most, " maps, got ", values.size());
    std::vector<MapOf> maps;
    for (const Json& value : values) maps.push_back(read(name, value));
    return maps;
  }

  MapOf write(const char* name) {
    const MapOf map = map_of(name, take(name));
    written_.push_back(map);
    return map;
  }

  // Tensors: `count` float32 numbers; or a packed weight of so many elements of the maps' dtype, or of so many bytes of int8.
  const float* floats(const char* name, int64_t count) { return static_cast<const float*>(tensor(name, "F32", count)); }
  const float* floats_or_none(const char* name, int64_t count) {
    if (call_.at(name).kind != Json::Kind::null) return floats(name, count);
    take(name);
    return nullptr;
  }
  const void* packed(const char* name, int64_t count) {
    return tensor(name, dtype_ == DType::float32 ? "F32" : dtype_ == DType::bfloat16 ? "BF16" : "F16", count);
  }
  const void* packed_or_none(const char* name, int64_t count) {
    if (call_.at(name).kind != Json::Kind::null) return packed(name, count);
    take(name);
    return nullptr;
  }
  const void* packed_int8(const char* name, int64_t bytes) { return tensor(name, "I8", bytes); }
  int64_t count_of(const char* name) const { return file_.tensor(call_.at(name).as_text(name)).count; }

  // Refused where an argument was not asked for, or a map that is written lies where one is read or written too.
  const std::vector<MapOf>& finish() {
    require(taken_ == call_.members.size(), "it has ", call_.members.size(), " arguments, and this library knows ", taken_,
            " of them");
    for (const MapOf& map : written_) {
      require(std::find(used_.begin(), used_.end(), map.slot) == used_.end(), "slot ", map.slot, " is written and used");
      used_.push_back(map.slot);
      contents_[static_cast<size_t>(map.slot)] = map;
    }
    return written_;
  }

 private:
  static constexpr int64_t kMostSlots = 4096;

  const Json& take(const char* name) {
    const Json& value = call_.at(name);
    ++taken_;
    return value;
  }

  MapOf map_of(const char* name, const Json& value) {
    const auto& numbers = value.as_items(name);
    require(numbers.size() == 3, name, " must be slot, per and channels, got ", numbers.size(), " numbers");
    const MapOf map{numbers[0].as_integer("slot", 0, kMostSlots - 1), numbers[1].as_integer("per", 0, Calls::kStride),
                    numbers[2].as_integer("channels", 1, INT32_MAX)};
    require(map.per == 0 || Calls::kStride % map.per == 0, "per must divide ", Calls::kStride, ", got ", map.per);
    if (map.slot >= static_cast<int64_t>(contents_.size())) contents_.resize(static_cast<size_t>(map.slot) + 1);
    return map;
  }

  MapOf read(const char* name, const Json& value) {
    const MapOf map = map_of(name, value);
    require(contents_[static_cast<size_t>(map.slot)] == map, name, " is not what was written to slot ", map.slot, " last");
    used_.push_back(map.slot);
    return map;
  }

  const void* tensor(const char* name, std::string_view dtype, int64_t count) {
    const std::string& stored = text(name);
    const FileTensor& found = file_.tensor(stored);
    require(found.dtype == dtype && found.count == count, name, " must be ", count, " elements of ", dtype, ", and ", stored,
            " has ", found.count, " of ", found.dtype);
    return found.data;
  }

  const Json& call_;
  const File& file_;
  DType dtype_;
  Contents& contents_;
  size_t taken_ = 0;
  std::vector<int64_t> used_;
  std::vector<MapOf> written_;
};

// What the steps of every library check of maps.
inline void check_like(const char* name, const MapOf& map, const MapOf& other) {
  require(map.per == other.per && map.channels == other.channels, name, " must have the size and the channels of the result");
}

// `map` has `times` as many rows and columns as `out`.
inline void check_size(const char* name, const MapOf& map, int64_t times, const MapOf& out) {
  require(map.per * times == out.per && (times == 1 || map.per), name, " must be ", times,
          " times as high and wide as the result");
}

inline char* at(const Frame& frame, const std::optional<MapOf>& map) { return map ? frame.at(*map) : nullptr; }

}  // namespace hifuse::c
