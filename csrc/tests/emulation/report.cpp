#include "report.h"

#include <dlfcn.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <tuple>
#include <utility>

namespace hifuse::emulation {
namespace {

constexpr size_t kEnough = 20;
constexpr const char* kWrappers[] = {"cuda_host.h", "ptx.cuh", "ptx_hopper.cuh"};

std::vector<std::string> messages;
std::set<std::tuple<std::string, Site, Site>> told_sites;
std::set<std::tuple<std::string, std::string, std::string, std::string>> told;

std::string quoted(const char* word) {
  std::string all = "'";
  for (; *word; ++word) all += *word == '\'' ? std::string("'\\''") : std::string(1, *word);
  return all + "'";
}

// The innermost line that is not one of our wrappers around the emulation, or nothing.
std::string line_of(const char* library, size_t offset) {
  const std::string command = "addr2line -i -s -e " + quoted(library) + text(" 0x%zx 2>/dev/null", offset);
  FILE* pipe = popen(command.c_str(), "r");
  if (!pipe) return "";
  std::string found;
  char line[512];
  while (std::fgets(line, sizeof line, pipe)) {
    line[std::strcspn(line, " \n")] = 0;
    const std::string file(line, std::strcspn(line, ":"));
    if (!found.empty() || file == "??") continue;
    bool wrapper = false;
    for (const char* name : kWrappers) wrapper |= file == name;
    if (!wrapper) found = line;
  }
  pclose(pipe);
  return found;
}

}  // namespace

std::string text(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  char buffer[1024];
  std::vsnprintf(buffer, sizeof buffer, format, arguments);
  va_end(arguments);
  return buffer;
}

namespace {

struct Place {
  std::string text;
  bool is_line;
};

const Place& place_of(Site site) {
  static std::map<Site, Place> known;
  if (const auto it = known.find(site); it != known.end()) return it->second;
  Place found{"an unknown place", false};
  Dl_info info{};
  if (site && dladdr(site, &info) && info.dli_fname) {
    const auto offset = static_cast<size_t>(static_cast<const char*>(site) - static_cast<const char*>(info.dli_fbase)) - 1;
    const std::string line = line_of(info.dli_fname, offset);  // a return address lies behind its call
    const char* slash = std::strrchr(info.dli_fname, '/');
    found = {line.empty() ? text("0x%zx of %s", offset, slash ? slash + 1 : info.dli_fname) : line, !line.empty()};
  }
  return known[site] = found;
}

}  // namespace

std::string place(Site site) { return place_of(site).text; }

bool same_place(Site a, Site b) {
  if (a == b) return true;
  const Place &one = place_of(a), &other = place_of(b);
  return !one.is_line || !other.is_line || one.text == other.text;
}

bool is_told(const char* kind, Site site, Site other) { return enough_told() || told_sites.contains({kind, site, other}); }

void tell(const char* kind, Site site, Site other, const std::string& what) {
  if (is_told(kind, site, other)) return;
  told_sites.insert({kind, site, other});
  if (!told.insert({grid.kernel.name, kind, place(site), place(other)}).second) return;
  messages.push_back(text("%s, block (%u, %u, %u): ", grid.kernel.name, block.index.x, block.index.y, block.index.z) + what);
}

bool enough_told() { return messages.size() >= kEnough; }

std::vector<std::string> errors() {
  told.clear();
  told_sites.clear();
  return std::exchange(messages, {});
}

}  // namespace hifuse::emulation
