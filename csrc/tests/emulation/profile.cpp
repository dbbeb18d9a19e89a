// Requests of whole warps: how many turns of the banks of shared memory they take, and how many sectors of device memory.
//
// The lanes of a warp run one after another here. The n-th access of each lane at one place of the kernel is taken for one
// request.
#include <algorithm>
#include <map>
#include <set>

#include "state.h"

namespace hifuse::emulation::profile {
namespace {

constexpr size_t kSector = 32, kBank = 4, kBanks = 32;

struct Request {
  Space space;
  size_t size;
  bool write;
  unsigned count = 0;
  uintptr_t addresses[kWarp] = {};
};
struct Key {
  Site site;
  unsigned warp, number;
  bool write;
  auto operator<=>(const Key&) const = default;
};
std::map<Key, Request> open;
std::map<std::pair<Site, bool>, std::vector<unsigned>> numbers;  // of a thread's accesses at a place

// Turns that the addresses of a request take: lanes are served together as long as they want 128 bytes at most, and of each
// bank one word.
unsigned turns(const uintptr_t* addresses, unsigned count, size_t size) {
  unsigned most = 0;
  std::set<uintptr_t> words[kBanks];
  for (unsigned i = 0; i < count; ++i)
    for (uintptr_t word = addresses[i] / kBank; word <= (addresses[i] + size - 1) / kBank; ++word)
      words[word % kBanks].insert(word);
  for (const auto& bank : words) most = std::max(most, static_cast<unsigned>(bank.size()));
  return most;
}

void count_shared(const Request& r) {
  const unsigned together = r.size <= kBank ? kWarp : static_cast<unsigned>(kBank * kBanks / r.size);
  ++counters().shared_requests;
  for (unsigned i = 0; i < r.count; i += together)
    counters().shared_conflicts += turns(r.addresses + i, std::min(together, r.count - i), r.size) - 1;
}

void count_device(const Request& r) {
  std::set<uintptr_t> sectors;
  for (unsigned i = 0; i < r.count; ++i)
    for (uintptr_t s = r.addresses[i] / kSector; s <= (r.addresses[i] + r.size - 1) / kSector; ++s) sectors.insert(s);
  Counters& c = counters();
  ++(r.write ? c.store_requests : c.load_requests);
  (r.write ? c.store_sectors : c.load_sectors) += sectors.size();
  (r.write ? c.store_bytes : c.load_bytes) += r.count * r.size;
}

void count(const Request& r) { r.space == Space::shared ? count_shared(r) : count_device(r); }

}  // namespace

void start() {
  open.clear();
  numbers.clear();
}

void access(Space space, unsigned thread, const void* p, size_t size, bool write, Site site) {
  auto& number = numbers[{site, write}];
  number.resize(block.threads, 0);
  const Key key{site, thread / kWarp, number[thread]++, write};
  Request& r = open.try_emplace(key, Request{space, size, write, 0, {}}).first->second;
  r.addresses[r.count++] = reinterpret_cast<uintptr_t>(p);
  if (r.count < kWarp) return;
  count(r);
  open.erase(key);
}

// Eight rows of 16 bytes are read at once.
void ldmatrix(const void* const (&rows)[kWarp]) {
  ++counters().ldmatrix_requests;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uintptr_t addresses[8];
    for (unsigned i = 0; i < 8; ++i) addresses[i] = reinterpret_cast<uintptr_t>(rows[8 * matrix + i]);
    counters().ldmatrix_conflicts += turns(addresses, 8, 16) - 1;
  }
}

void finish_block() {
  for (const auto& [key, request] : open) count(request);
  start();
}

}  // namespace hifuse::emulation::profile
