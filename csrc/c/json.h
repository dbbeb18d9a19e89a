// JSON, as far as files of networks have it. What is not JSON is refused; nothing in it is believed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace hifuse::c {

struct Json {
  enum class Kind { null, boolean, number, string, array, object };

  Kind kind = Kind::null;
  double number = 0;  // also of a boolean: 0 or 1
  std::string text;
  std::vector<Json> items;
  std::map<std::string, Json, std::less<>> members;

  // Each is refused, by `name`, where the value is of another kind or out of range.
  const std::string& as_text(const char* name) const;
  const std::vector<Json>& as_items(const char* name) const;
  double as_number(const char* name) const;
  int64_t as_integer(const char* name, int64_t least, int64_t most) const;
  bool as_flag(const char* name) const;

  // A member of an object; null where it is missing.
  const Json* find(std::string_view key) const;
  // One that must be there.
  const Json& at(std::string_view key) const;
};

// The one value of `text`.
Json parse_json(std::string_view text);

}  // namespace hifuse::c
