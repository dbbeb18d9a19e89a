#include "shared_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "report.h"

namespace hifuse::emulation::shared_memory {
namespace {

constexpr size_t kAround = 64 * 1024, kMost = 228 * 1024;

struct Read {
  int who;
  Time time;
  Site site;
};

struct Cell {  // of a granule
  Time write_time = 0;
  int16_t writer = kNobody;   // a thread or an engine
  int16_t copier = kNobody;   // the thread whose copy is under way
  uint16_t busy_readers = 0;  // engines that read it
  bool written = false;       // ever
  Read read{kNobody, 0, nullptr};
  int more_reads = -1;  // of further readers that are not ordered: a place in `lists`
  Site write_site = nullptr, busy_site = nullptr;
};

std::byte* arena = nullptr;
std::vector<Cell> cells;
std::vector<std::vector<Read>> lists;
std::vector<int> free_lists;
std::vector<std::vector<Time>> fences;  // of each thread: when

std::byte* begin() { return arena + kAround; }
size_t offset(const void* p) { return static_cast<size_t>(static_cast<const std::byte*>(p) - begin()); }

// The cells of a range.
struct Cells {
  Cell* first;
  Cell* last;
  Cells(const void* p, size_t size)
      : first(&cells[offset(p) / kGranule]), last(&cells[(offset(p) + size - 1) / kGranule] + 1) {}
  Cell* begin() const { return first; }
  Cell* end() const { return last; }
};

enum class Clash { read_after_write, write_after_write, write_after_read, read_of_copy, write_to_copy, busy, unwritten };

[[gnu::cold]] void tell_clash(Clash clash, const Cell& cell, unsigned me, int other, Site site, Site before) {
  if (is_told("race", site, before)) return;
  const size_t byte = static_cast<size_t>(&cell - cells.data()) * kGranule;
  const bool reads = clash == Clash::read_after_write || clash == Clash::read_of_copy || clash == Clash::unwritten;
  const char* verb = reads ? "reads" : "overwrites";
  std::string what = text("thread %u %s byte %zu of shared memory at %s, ", me, verb, byte, place(site).c_str());
  const std::string whose = other < 0 || static_cast<unsigned>(other) >= block.threads ? "an engine" : text("thread %d", other);
  const std::string there = place(before);
  switch (clash) {
    case Clash::read_after_write:
    case Clash::write_after_write:
      what += text("which %s wrote at %s; no barrier orders the two.", whose.c_str(), there.c_str());
      break;
    case Clash::write_after_read:
      what += text("which %s read at %s; no barrier orders the two.", whose.c_str(), there.c_str());
      break;
    case Clash::read_of_copy:
    case Clash::write_to_copy:
      what += text("while the copy to it that %s started at %s is under way; nobody has waited for it.", whose.c_str(),
                   there.c_str());
      break;
    case Clash::busy:
      what += text("while the engine that was started at %s still reads it; nobody has waited for it.", there.c_str());
      break;
    case Clash::unwritten: what += "which nobody has written."; break;
  }
  tell("race", site, before, what);
}

void drop_list(Cell& cell) {
  if (cell.more_reads < 0) return;
  lists[cell.more_reads].clear();
  free_lists.push_back(cell.more_reads);
  cell.more_reads = -1;
}

std::vector<Read>& list_of(Cell& cell) {
  if (cell.more_reads < 0) {
    if (free_lists.empty()) {
      free_lists.push_back(static_cast<int>(lists.size()));
      lists.emplace_back();
    }
    cell.more_reads = free_lists.back();
    free_lists.pop_back();
  }
  return lists[cell.more_reads];
}

// Keeps of the readers those that no later reader is ordered behind.
void add_read(Cell& cell, const Read& read, const Time* known) {
  const auto replaced = [&](const Read& old) {
    return old.who == kNobody || old.who == read.who || (known && old.time <= known[old.who]);
  };
  if (replaced(cell.read)) {
    cell.read = read;
    return;
  }
  auto& list = list_of(cell);
  for (Read& old : list)
    if (replaced(old)) {
      old = read;
      return;
    }
  list.push_back(read);
}

bool unordered(int who, Time time, unsigned me, const Time* known) {
  return who != kNobody && who != static_cast<int>(me) && time > known[who];
}

void check_write(Cell& cell, unsigned me, const Time* known, Site site) {
  if (cell.busy_readers) tell_clash(Clash::busy, cell, me, kNobody, site, cell.busy_site);
  if (unordered(cell.writer, cell.write_time, me, known))
    tell_clash(Clash::write_after_write, cell, me, cell.writer, site, cell.write_site);
  if (unordered(cell.read.who, cell.read.time, me, known))
    tell_clash(Clash::write_after_read, cell, me, cell.read.who, site, cell.read.site);
  if (cell.more_reads >= 0)
    for (const Read& r : lists[cell.more_reads])
      if (unordered(r.who, r.time, me, known)) tell_clash(Clash::write_after_read, cell, me, r.who, site, r.site);
}

void check_read(Cell& cell, unsigned me, const Time* known, Site site) {
  if (!cell.written) {
    tell_clash(Clash::unwritten, cell, me, kNobody, site, nullptr);
    cell.written = true;
  }
  if (unordered(cell.writer, cell.write_time, me, known))
    tell_clash(Clash::read_after_write, cell, me, cell.writer, site, cell.write_site);
}

// Whether the store is fenced, and the fence known to the thread that starts the engine.
bool fenced(const Cell& cell, const Time* known) {
  if (cell.writer == kNobody || static_cast<unsigned>(cell.writer) >= block.threads) return true;
  const auto& times = fences[cell.writer];
  const auto it = std::lower_bound(times.begin(), times.end(), cell.write_time);
  return it != times.end() && *it <= known[cell.writer];
}

}  // namespace

void start() {
  if (!arena) arena = static_cast<std::byte*>(std::aligned_alloc(1024, 2 * kAround + kMost));
  std::memset(begin(), 0xff, grid.kernel.shared_bytes);
  cells.assign(grid.kernel.shared_bytes / kGranule + 1, Cell{});
  for (auto& list : lists) list.clear();
  free_lists.resize(lists.size());
  for (size_t i = 0; i < lists.size(); ++i) free_lists[i] = static_cast<int>(i);
  fences.assign(block.threads, {});
}

void* data() { return begin(); }

bool holds(const void* p) { return p >= arena && p < arena + 2 * kAround + kMost; }

bool check_bounds(const void* p, size_t size, const char* verb, Site site) {
  const auto* q = static_cast<const std::byte*>(p);
  if (q >= begin() && q + size <= begin() + grid.kernel.shared_bytes) return true;
  tell("shared bounds", site, nullptr,
       text("thread %u %s %zu bytes at byte %td of shared memory at %s; the kernel has %zu bytes.", block.current, verb, size,
            q - begin(), place(site).c_str(), grid.kernel.shared_bytes));
  return false;
}

void access(unsigned me, const void* p, size_t size, bool write, Site site) {
  if (!check_bounds(p, size, write ? "writes" : "reads", site)) abandon();
  if (!options().check) return;
  const Time* known = clocks::of(me);
  const Time now = known[me];
  for (Cell& cell : Cells(p, size)) {
    if (cell.copier != kNobody)
      tell_clash(write ? Clash::write_to_copy : Clash::read_of_copy, cell, me, cell.copier, site, cell.write_site);
    if (write) {
      check_write(cell, me, known, site);
      drop_list(cell);
      cell.read = {kNobody, 0, nullptr};
      cell.writer = static_cast<int16_t>(me);
      cell.write_time = now;
      cell.write_site = site;
      cell.written = true;
    } else {
      check_read(cell, me, known, site);
      add_read(cell, {static_cast<int>(me), now, site}, known);
    }
  }
}

void start_copy(Range to, Site site) {
  for (Cell& cell : Cells(to.begin, to.size)) {
    cell.copier = static_cast<int16_t>(block.current);
    cell.write_site = site;
  }
}

void land_copy(Range to, unsigned writer, Time time) {
  for (Cell& cell : Cells(to.begin, to.size)) {
    cell.copier = kNobody;
    cell.writer = static_cast<int16_t>(writer);
    cell.write_time = time;
    cell.written = true;
  }
}

void start_read(Range from, std::initializer_list<unsigned> threads, const char* engine, Site site) {
  if (!check_bounds(from.begin, from.size, "gives an engine", site)) abandon();
  for (Cell& cell : Cells(from.begin, from.size)) {
    if (options().check) {
      if (cell.copier != kNobody) tell_clash(Clash::read_of_copy, cell, block.current, cell.copier, site, cell.write_site);
      for (const unsigned t : threads) {
        const Time* known = clocks::of(t);
        check_read(cell, t, known, site);
        if (!fenced(cell, known))
          tell("fence", site, cell.write_site,
               text("%s at %s reads what thread %d stored at %s; fence_async_shared is missing between the two.", engine,
                    place(site).c_str(), cell.writer, place(cell.write_site).c_str()));
      }
    }
    ++cell.busy_readers;
    cell.busy_site = site;
  }
}

void end_read(Range from, unsigned reader, Time time) {
  for (Cell& cell : Cells(from.begin, from.size)) {
    --cell.busy_readers;
    add_read(cell, {static_cast<int>(reader), time, cell.busy_site}, nullptr);
  }
}

void fence_engines() {
  fences[block.current].push_back(clocks::now(block.current));
  clocks::tick(block.current);
}

}  // namespace hifuse::emulation::shared_memory
