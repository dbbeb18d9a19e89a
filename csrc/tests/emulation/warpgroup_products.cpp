// wgmma: products that go on by themselves. Until a wait, accumulators hold NaN and operands in shared memory are busy.
#include <deque>
#include <map>
#include <memory>
#include <ptx_hopper.cuh>

#include "numbers.h"
#include "report.h"
#include "shared_memory.h"

namespace hifuse::emulation {

uintptr_t swizzled(uintptr_t address);  // of tensor_copies.cpp

namespace {

constexpr int kRows = 64, kDepth = 16;
constexpr uint32_t kBusy = 0x7fa0b5b5;  // in accumulators of products under way: a signalling NaN, which arithmetic changes

// The accumulators of a warpgroup under one name, that of the first thread's.
struct Sums {
  std::vector<float*> registers;  // of each thread
  std::vector<float> values;      // [64, N], what they will be
  int columns = 0;
  int products = 0;      // under way
  bool started = false;  // by a product: `values` are what the last one left
};

struct Product {
  std::shared_ptr<Sums> sums;
  std::vector<float> a;  // [64, 16], if it was in registers
  uint64_t a_tile, b_tile;
  bool add;
  float (*widen)(uint16_t);
  unsigned group;
  Site site;
};

struct Warpgroup {
  std::deque<Product> under_way;
  std::map<float*, std::shared_ptr<Sums>> sums;
  unsigned committed = 0;
  Time finished = 0;
  bool fenced = false;  // since the last wait
};
std::vector<Warpgroup> all;

struct Lane {
  float* d;
  int columns;
  const uint32_t* a_registers;
  uint64_t a, b;
  bool add;
  Site site;
};

unsigned current() { return block.current / kWarpgroup; }

// Where thread l holds its i-th accumulator.
size_t element(unsigned l, int i, int columns) {
  const unsigned row = l / 32 * 16 + l % 32 / 4 + static_cast<unsigned>(i % 4 / 2 * 8),
                 column = static_cast<unsigned>(i / 4 * 8) + l % 4 * 2 + static_cast<unsigned>(i % 2);
  return row * static_cast<size_t>(columns) + column;
}

template <class Visit>
void each(Sums& s, Visit visit) {
  for (unsigned l = 0; l < kWarpgroup; ++l)
    for (int i = 0; i < s.columns / 2; ++i) visit(s.registers[l][i], s.values[element(l, i, s.columns)]);
}

shared_memory::Range tile(uint64_t descriptor, int rows) {
  return {reinterpret_cast<std::byte*>(descriptor & ~uintptr_t(127)), static_cast<size_t>(rows) * 128};
}

float fetch(const Product& p, uint64_t descriptor, int row, int k) {
  uint16_t bits;
  std::memcpy(&bits, reinterpret_cast<const void*>(swizzled(descriptor + static_cast<uintptr_t>(row * 128 + k * 2))), 2);
  return p.widen(bits);
}

void compute(const Product& p) {
  Sums& s = *p.sums;
  std::vector<float> a(p.a), b(static_cast<size_t>(kDepth * s.columns));  // b as [16, N]
  if (a.empty())
    for (int row = 0; row < kRows; ++row)
      for (int k = 0; k < kDepth; ++k) a.push_back(fetch(p, p.a_tile, row, k));
  for (int k = 0; k < kDepth; ++k)
    for (int column = 0; column < s.columns; ++column)
      b[static_cast<size_t>(k * s.columns + column)] = fetch(p, p.b_tile, column, k);
  for (int row = 0; row < kRows; ++row) {
    std::vector<float> sums(static_cast<size_t>(s.columns), 0.0f);
    for (int k = 0; k < kDepth; ++k)
      for (int column = 0; column < s.columns; ++column) sums[column] += a[row * kDepth + k] * b[k * s.columns + column];
    for (int column = 0; column < s.columns; ++column) {
      float& value = s.values[row * s.columns + column];
      value = (p.add ? value : 0.0f) + sums[column];
    }
  }
}

// Tells if accumulators of products that are under way are not as these left them.
void check_untouched(Sums& s, Site site) {
  bool touched = false;
  each(s, [&](float& mine, float& value) {
    touched |= to_bits(mine) != (options().landing == Landing::late ? kBusy : to_bits(value));
  });
  if (touched)
    tell("wgmma", site, nullptr,
         text("accumulators of the product at %s were changed while it was under way; a wait is missing before that.",
              place(site).c_str()));
}

// Takes accumulators on which no product is under way as they are, and hides them until the products have ended.
void take(Sums& s, Site site, bool fenced) {
  bool changed = !s.started;
  each(s, [&](float& mine, float& value) {
    changed |= to_bits(mine) != to_bits(value);
    value = mine;
  });
  if (changed && !fenced)
    tell("wgmma fence", site, nullptr,
         text("the product at %s has accumulators that other instructions have set; wgmma_fence is missing before it.",
              place(site).c_str()));
  s.started = true;
  if (options().landing == Landing::late) each(s, [](float& mine, float&) { mine = from_bits(kBusy); });
}

void give_back(Sums& s, Site site) {
  check_untouched(s, site);
  each(s, [](float& mine, float& value) { mine = value; });
}

std::vector<float> from_registers(void* const* lanes, float (*widen)(uint16_t)) {
  std::vector<float> a(kRows * kDepth);
  for (unsigned l = 0; l < kWarpgroup; ++l)
    for (unsigned i = 0; i < 4; ++i)
      for (unsigned half = 0; half < 2; ++half) {
        const unsigned row = l / 32 * 16 + l % 32 / 4 + i % 2 * 8, k = 2 * (l % 4) + half + i / 2 * 8;
        a[row * kDepth + k] = widen(static_cast<uint16_t>(static_cast<Lane*>(lanes[l])->a_registers[i] >> (16 * half)));
      }
  return a;
}

template <class T>
void issue(void* const* lanes) {
  const Lane& first = *static_cast<Lane*>(lanes[0]);
  Warpgroup& w = all[current()];
  for (unsigned l = 1; l < kWarpgroup; ++l) {
    const Lane& lane = *static_cast<Lane*>(lanes[l]);
    if (lane.a == first.a && lane.b == first.b && lane.add == first.add && lane.columns == first.columns) continue;
    tell("wgmma", first.site, nullptr,
         text("threads of a warpgroup give different operands to the product at %s.", place(first.site).c_str()));
    abandon();
  }
  auto& sums = w.sums[first.d];
  if (!sums || sums->columns != first.columns) {
    sums = std::make_shared<Sums>();
    sums->columns = first.columns;
    sums->values.resize(static_cast<size_t>(kRows * first.columns));
    for (unsigned l = 0; l < kWarpgroup; ++l) sums->registers.push_back(static_cast<Lane*>(lanes[l])->d);
  }
  if (sums->products)
    check_untouched(*sums, first.site);
  else
    take(*sums, first.site, w.fenced);
  ++sums->products;
  ++counters().products;
  const auto widened = [](uint16_t bits) { return widen(T{bits}); };
  Product p{sums, {}, first.a, first.b, first.add, widened, w.committed, first.site};
  if (first.a_registers) p.a = from_registers(lanes, widened);

  const unsigned t = current() * kWarpgroup;
  const std::initializer_list<unsigned> warps = {t, t + 32, t + 64, t + 96};
  if (!first.a_registers) shared_memory::start_read(tile(p.a_tile, kRows), warps, "the product", p.site);
  shared_memory::start_read(tile(p.b_tile, p.sums->columns), warps, "the product", p.site);
  if (options().landing == Landing::early) {
    compute(p);
    each(*sums, [](float& mine, float& value) { mine = value; });
  }
  w.under_way.push_back(std::move(p));
}

void finish(Warpgroup& w) {
  const Product p = std::move(w.under_way.front());
  w.under_way.pop_front();
  if (options().landing == Landing::late) compute(p);
  ++w.finished;
  const unsigned entry = clocks::warpgroup(current());
  if (p.a.empty()) shared_memory::end_read(tile(p.a_tile, kRows), entry, w.finished);
  shared_memory::end_read(tile(p.b_tile, p.sums->columns), entry, w.finished);
  if (--p.sums->products == 0) give_back(*p.sums, p.site);
}

void finish_until(void* const* lanes) {
  Warpgroup& w = all[current()];
  const auto pending = static_cast<unsigned>(*static_cast<int*>(lanes[0]));
  while (!w.under_way.empty() && w.under_way.front().group + pending < w.committed) finish(w);
  w.fenced = false;
  for (unsigned i = 0; i < kWarpgroup; ++i) clocks::of(current() * kWarpgroup + i)[clocks::warpgroup(current())] = w.finished;
}

}  // namespace

void warpgroup_products::start() { all.assign((block.threads + kWarpgroup - 1) / kWarpgroup, {}); }

void warpgroup_products::finish_thread() {
  const auto& products = all[current()].under_way;
  if (products.empty()) return;
  const Site site = products.front().site;
  tell("end", site, nullptr,
       text("thread %u ends, and its warpgroup has not waited for the product that it started at %s.", block.current,
            place(site).c_str()));
}

}  // namespace hifuse::emulation

namespace hifuse::cuda {
using namespace emulation;

uint64_t describe(const void* tile, int first) { return reinterpret_cast<uintptr_t>(tile) + static_cast<uintptr_t>(first * 2); }

void wgmma_fence() {
  collectives::warpgroup("wgmma_fence", nullptr, [](void* const*) { all[current()].fenced = true; }, HIFUSE_SITE);
}
void wgmma_commit() {
  collectives::warpgroup("wgmma_commit", nullptr, [](void* const*) { ++all[current()].committed; }, HIFUSE_SITE);
}
void wgmma_wait(int pending) { collectives::warpgroup("wgmma_wait", &pending, finish_until, HIFUSE_SITE); }

template <class T>
void wgmma(float* d, int columns, uint64_t a, uint64_t b, bool add) {
  Lane mine{d, columns, nullptr, a, b, add, HIFUSE_SITE};
  collectives::warpgroup("wgmma", &mine, issue<T>, HIFUSE_SITE);
}
template <class T>
void wgmma(float* d, int columns, const uint32_t* a, uint64_t b, bool add) {
  Lane mine{d, columns, a, 0, b, add, HIFUSE_SITE};
  collectives::warpgroup("wgmma", &mine, issue<T>, HIFUSE_SITE);
}
template void wgmma<bf16>(float*, int, uint64_t, uint64_t, bool);
template void wgmma<f16>(float*, int, uint64_t, uint64_t, bool);
template void wgmma<bf16>(float*, int, const uint32_t*, uint64_t, bool);
template void wgmma<f16>(float*, int, const uint32_t*, uint64_t, bool);

}  // namespace hifuse::cuda
