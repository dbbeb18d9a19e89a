#include "device_memory.h"

#include <algorithm>
#include <memory>
#include <unordered_map>

#include "report.h"

// The library's own bytes: constants of a kernel lie there.
extern "C" {
extern const char __ehdr_start[] __attribute__((visibility("hidden")));
extern const char _end[] __attribute__((visibility("hidden")));
}

namespace hifuse::emulation {
namespace {

struct Tensor {
  const std::byte* begin;
  size_t size;
  bool writable;
};
std::vector<Tensor> tensors;

// Who wrote a granule last, and who read it last, in which launch.
constexpr unsigned kSeveral = 0xffffffffu;  // blocks
struct Mark {
  uint32_t launch = 0;
  unsigned block = 0;
  unsigned thread = 0;
  Time time = 0;
  Site site = nullptr;
};
struct Granule {
  Mark write, read;
};
constexpr size_t kPage = 4096;
struct Page {
  Granule granules[kPage / kGranule];
};
std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages;
uintptr_t last_number = 0;
Page* last_page = nullptr;

Granule& granule(const std::byte* p) {
  const auto at = reinterpret_cast<uintptr_t>(p);
  if (!last_page || last_number != at / kPage) {
    auto& page = pages[last_number = at / kPage];
    if (!page) page = std::make_unique<Page>();
    last_page = page.get();
  }
  return last_page->granules[at % kPage / kGranule];
}

// Another block, or another thread without a barrier between; unless an arrival orders the two.
bool clashes(const Mark& mark, unsigned thread) {
  if (mark.launch != grid.launch) return false;
  if (mark.block != block.number) return mark.block == kSeveral || !arrivals::order(thread, mark.block, mark.thread, mark.time);
  return mark.thread != thread && mark.time > clocks::of(thread)[mark.thread];
}

[[gnu::cold]] void tell_clash(const Mark& mark, unsigned thread, const std::byte* p, const char* verb, const char* before,
                              Site site) {
  if (is_told("device race", site, mark.site)) return;
  const auto tensor =
      std::find_if(tensors.begin(), tensors.end(), [&](const Tensor& t) { return p >= t.begin && p < t.begin + t.size; });
  const size_t byte = tensor == tensors.end() ? 0 : static_cast<size_t>(p - tensor->begin);
  std::string what = text("thread %u %s byte %zu of a tensor of %zu bytes at %s, which ", thread, verb, byte,
                          tensor == tensors.end() ? 0 : tensor->size, place(site).c_str());
  if (mark.block == kSeveral)
    what += "several blocks";
  else if (mark.block != block.number)
    what += text("another block, number %u,", mark.block);
  else
    what += text("thread %u", mark.thread);
  what += text(" %s at %s; ", before, place(mark.site).c_str());
  what += mark.block == block.number ? "no barrier orders the two." : "nothing orders these blocks.";
  tell("device race", site, mark.site, what);
}

void check_order(unsigned thread, const std::byte* p, size_t size, bool write, Site site) {
  const Mark mine{grid.launch, block.number, thread, clocks::now(thread), site};
  const auto* end = p + size;
  for (; p < end; p += kGranule) {
    Granule& g = granule(p);
    if (clashes(g.write, thread)) tell_clash(g.write, thread, p, write ? "writes" : "reads", "wrote", site);
    if (write) {
      if (clashes(g.read, thread)) tell_clash(g.read, thread, p, "writes", "read", site);
      g.write = mine;
    } else {
      const bool several = g.read.launch == grid.launch && g.read.block != block.number;
      g.read = mine;
      if (several) g.read.block = kSeveral;
    }
  }
}

[[noreturn, gnu::cold]] void tell_bounds(const std::byte* p, size_t size, unsigned thread, bool write, Site site) {
  const Tensor* nearest = nullptr;
  size_t distance = 0;
  for (const Tensor& t : tensors) {
    const size_t away = p < t.begin                   ? static_cast<size_t>(t.begin - p)
                        : p + size > t.begin + t.size ? static_cast<size_t>(p - t.begin)
                                                      : 0;
    const size_t beyond = p < t.begin ? away : away > t.size ? away - t.size : 0;
    if (!nearest || beyond < distance) nearest = &t, distance = beyond;
  }
  const std::string what = text("thread %u %s %zu bytes at %s", thread, write ? "writes" : "reads", size, place(site).c_str());
  if (nearest && distance < (1 << 20))
    tell("bounds", site, nullptr, what + text(", at byte %td of a tensor of %zu bytes.", p - nearest->begin, nearest->size));
  else
    tell("bounds", site, nullptr, what + ", in no tensor of this launch.");
  abandon();
}

bool within(const std::byte* p, size_t size, const void* begin, size_t bytes) {
  const auto* first = static_cast<const std::byte*>(begin);
  return p >= first && p + size <= first + bytes;
}

}  // namespace

void allow(const void* begin, size_t bytes, bool writable) {
  if (bytes) tensors.push_back({static_cast<const std::byte*>(begin), bytes, writable});
}

void forget() {
  tensors.clear();
  pages.clear();
  last_page = nullptr;
}

// What lies at a place. Parameters are there from the beginning, and no memory.
enum class Lies { parameters, read_only, writable };

// Tells of an access that the launch may not make.
static Lies look_at(unsigned thread, const std::byte* p, size_t size, bool write, Site site) {
  bool readable = false, writable = false;
  for (const Tensor& t : tensors)
    if (within(p, size, t.begin, t.size)) {
      readable = true;
      writable |= t.writable;
    }
  if (!readable) {
    const bool own = within(p, size, grid.params, grid.kernel.params_bytes) ||
                     (p >= reinterpret_cast<const std::byte*>(__ehdr_start) && p < reinterpret_cast<const std::byte*>(_end));
    if (own && !write) return Lies::parameters;
    tell_bounds(p, size, thread, write, site);
  }
  if (write && !writable) {
    tell("read only", site, nullptr,
         text("thread %u writes %zu bytes at %s to a tensor that the launch was given to read.", thread, size,
              place(site).c_str()));
    abandon();
  }
  if (!earlier_launches::are_waited_for(thread))
    tell("early", site, nullptr,
         text("thread %u %s memory at %s before it has waited for the launches before this one.", thread,
              write ? "writes" : "reads", place(site).c_str()));
  return writable ? Lies::writable : Lies::read_only;
}

void device_memory::access(unsigned thread, const void* address, size_t size, bool write, Site site) {
  const auto* p = static_cast<const std::byte*>(address);
  const Lies found = look_at(thread, p, size, write, site);
  if (found == Lies::parameters) return;
  ++counters().device_accesses;
  if (options().profile) profile::access(profile::Space::device, thread, p, size, write, site);
  // What no tensor of the launch lets anybody write has no races.
  if (found == Lies::writable && options().check) check_order(thread, p, size, write, site);
}

void device_memory::count(unsigned thread, const void* address, size_t size, Site site) {
  look_at(thread, static_cast<const std::byte*>(address), size, true, site);
  ++counters().device_accesses;
}

}  // namespace hifuse::emulation
