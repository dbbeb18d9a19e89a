#include "c/json.h"

#include <charconv>
#include <cmath>
#include <utility>

#include "c/border.h"

namespace hifuse::c {
namespace {

constexpr int kDeepest = 64;
constexpr int64_t kMostValues = 1000000;

const char* name_of(Json::Kind kind) {
  constexpr const char* kNames[] = {"null", "true or false", "a number", "a string", "an array", "an object"};
  return kNames[static_cast<int>(kind)];
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json parse() {
    Json found = value(0);
    skip_space();
    expect(at_ == text_.size(), "the end");
    return found;
  }

 private:
  void expect(bool holds, const char* what) const { require(holds, "JSON is damaged at byte ", at_, ": expected ", what); }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\r\n").find(text_[at_]) != std::string_view::npos) ++at_;
  }

  // The next character that is no space.
  char peek() {
    skip_space();
    expect(at_ < text_.size(), "more");
    return text_[at_];
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  Json value(int depth) {
    expect(depth < kDeepest, "fewer brackets within brackets");
    expect(++values_ <= kMostValues, "fewer values");
    Json found;
    switch (peek()) {
      case '{': object(found, depth); break;
      case '[': array(found, depth); break;
      case '"': found.kind = Json::Kind::string, found.text = string(); break;
      case 't': word("true"), found.kind = Json::Kind::boolean, found.number = 1; break;
      case 'f': word("false"), found.kind = Json::Kind::boolean; break;
      case 'n': word("null"); break;
      default: found.kind = Json::Kind::number, found.number = number();
    }
    return found;
  }

  void word(std::string_view wanted) {
    expect(text_.substr(at_, wanted.size()) == wanted, "true, false or null");
    at_ += wanted.size();
  }

  void object(Json& found, int depth) {
    found.kind = Json::Kind::object;
    ++at_;
    if (take('}')) return;
    do {
      expect(peek() == '"', "a key");
      std::string key = string();
      expect(take(':'), "a colon");
      const bool fresh = found.members.emplace(std::move(key), value(depth + 1)).second;
      expect(fresh, "each key once");
    } while (take(','));
    expect(take('}'), "a comma or a closing brace");
  }

  void array(Json& found, int depth) {
    found.kind = Json::Kind::array;
    ++at_;
    if (take(']')) return;
    do found.items.push_back(value(depth + 1));
    while (take(','));
    expect(take(']'), "a comma or a closing bracket");
  }

  double number() {
    const auto digit = [&](size_t place) { return place < text_.size() && text_[place] >= '0' && text_[place] <= '9'; };
    const size_t first = at_ + (text_[at_] == '-');
    expect(digit(first) && !(text_[first] == '0' && digit(first + 1)), "a value");  // from_chars knows "inf" and "nan" too
    double found = 0;
    const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), found);
    expect(error == std::errc(), "a number that float64 holds");
    at_ = static_cast<size_t>(end - text_.data());
    return found;
  }

  std::string string() {
    std::string found;
    for (++at_;;) {
      expect(at_ < text_.size() && static_cast<unsigned char>(text_[at_]) >= 0x20, "the end of a string");
      const char next = text_[at_++];
      if (next == '"') return found;
      if (next == '\\')
        escaped(found);
      else
        character(static_cast<unsigned char>(next), found);
    }
  }

  // One of UTF-8, whose first byte has been read.
  void character(uint32_t first, std::string& to) {
    if (first < 0x80) return utf8(first, to);
    const int more = first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
    bool fits = first >= 0xc2 && first <= 0xf4;
    uint32_t code = first & (0x3fu >> more);
    for (int i = 0; i < more && fits; ++i) {
      const uint32_t next = at_ < text_.size() ? static_cast<unsigned char>(text_[at_++]) : 0;
      fits = (next & 0xc0) == 0x80;
      code = code << 6 | (next & 0x3f);
    }
    constexpr uint32_t kLeast[] = {0x80, 0x800, 0x10000};
    expect(fits && code >= kLeast[more - 1] && is_character(code), "UTF-8");
    utf8(code, to);
  }

  static bool is_character(uint32_t code) { return code < 0xd800 || (code >= 0xe000 && code <= 0x10ffff); }

  void escaped(std::string& to) {
    expect(at_ < text_.size(), "more");
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char letter = text_[at_++];
    if (const size_t place = kLetters.find(letter); place != std::string_view::npos) {
      to += kMeant[place];
      return;
    }
    expect(letter == 'u', "an escape that JSON knows");
    uint32_t code = four_digits();
    if (code >= 0xd800 && code < 0xdc00 && text_.substr(at_, 2) == "\\u") {
      at_ += 2;
      const uint32_t low = four_digits();
      expect(low >= 0xdc00 && low < 0xe000, "the second half of a character");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    expect(is_character(code), "a whole character");
    utf8(code, to);
  }

  uint32_t four_digits() {
    uint32_t code = 0;
    const char* const begin = text_.data() + at_;
    expect(text_.size() - at_ >= 4, "four hexadecimal digits");
    expect(std::from_chars(begin, begin + 4, code, 16).ptr == begin + 4, "four hexadecimal digits");
    at_ += 4;
    return code;
  }

  static void utf8(uint32_t code, std::string& to) {
    const auto put = [&](uint32_t byte) { to += static_cast<char>(byte); };
    if (code < 0x80) return put(code);
    if (code < 0x800) return put(0xc0 | code >> 6), put(0x80 | (code & 0x3f));
    if (code < 0x10000)
      put(0xe0 | code >> 12);
    else
      put(0xf0 | code >> 18), put(0x80 | (code >> 12 & 0x3f));
    put(0x80 | (code >> 6 & 0x3f)), put(0x80 | (code & 0x3f));
  }

  std::string_view text_;
  size_t at_ = 0;
  int64_t values_ = 0;
};

void check_kind(const char* name, const Json& value, Json::Kind kind) {
  require(value.kind == kind, name, " must be ", name_of(kind), ", got ", name_of(value.kind));
}

}  // namespace

const std::string& Json::as_text(const char* name) const {
  check_kind(name, *this, Kind::string);
  return text;
}

const std::vector<Json>& Json::as_items(const char* name) const {
  check_kind(name, *this, Kind::array);
  return items;
}

double Json::as_number(const char* name) const {
  check_kind(name, *this, Kind::number);
  return number;
}

int64_t Json::as_integer(const char* name, int64_t least, int64_t most) const {
  const double value = as_number(name);
  require(value == std::trunc(value) && value >= static_cast<double>(least) && value <= static_cast<double>(most), name,
          " must be an integer from ", least, " to ", most, ", got ", value);
  return static_cast<int64_t>(value);
}

bool Json::as_flag(const char* name) const {
  check_kind(name, *this, Kind::boolean);
  return number != 0;
}

const Json* Json::find(std::string_view key) const {
  const auto found = members.find(key);
  return found == members.end() ? nullptr : &found->second;
}

const Json& Json::at(std::string_view key) const {
  const Json* const found = find(key);
  require(found, key, " is missing");
  return *found;
}

Json parse_json(std::string_view text) { return Parser(text).parse(); }

}  // namespace hifuse::c
