// Tensor copies (TMA): an engine moves boxes into shared memory, and an mbarrier counts their bytes.
#include <cstring>
#include <map>
#include <ptx_hopper.cuh>

#include "mbarriers.h"
#include "report.h"
#include "shared_memory.h"

namespace hifuse::emulation {

// The address of an offset in swizzled rows of 128 bytes: bits 4 to 6 are those of the chunk, bits 7 to 9 those of the row.
uintptr_t swizzled(uintptr_t address) { return address ^ (address >> 7 & 7) << 4; }

namespace {

constexpr int kColumns = 64, kChunk = 8;  // numbers of a row of a box, and of 16 bytes

struct Copy {
  std::byte* to;
  std::vector<const uint16_t*> chunks;  // of 16 bytes, row by row; null outside of the tensor
  uint64_t* bar;
  Site site;
  size_t bytes() const { return chunks.size() * kChunk * sizeof(uint16_t); }
};
std::vector<Copy> under_way;

// The last copy of each mbarrier, and the time at which it is there.
struct Last {
  Time time;
  Site site;
};
std::map<unsigned, Last> last_copies;  // by the barrier's entry in the clocks

void land(const Copy& copy) {
  for (size_t i = 0; i < copy.chunks.size(); ++i) {
    auto* to = reinterpret_cast<void*>(swizzled(reinterpret_cast<uintptr_t>(copy.to) + i * 16));
    if (copy.chunks[i])
      std::memcpy(to, copy.chunks[i], 16);
    else
      std::memset(to, 0, 16);
  }
  const auto [entry, time] = mbarriers::next_phase(copy.bar, copy.site);
  shared_memory::land_copy({copy.to, copy.bytes()}, entry, time);
  mbarriers::complete(copy.bar, copy.bytes());
}

void start_copy(Copy copy) {
  const unsigned t = block.current;
  ++counters().copies;
  if (reinterpret_cast<uintptr_t>(copy.to) % 1024) {
    tell("alignment", copy.site, nullptr,
         text("thread %u copies a box at %s to an address that is no multiple of 1024.", t, place(copy.site).c_str()));
    abandon();
  }
  const auto [entry, time] = mbarriers::next_phase(copy.bar, copy.site);
  last_copies[entry] = {time, copy.site};
  for (const uint16_t* chunk : copy.chunks)
    if (chunk) access(t, chunk, 16, false, copy.site);
  access(t, copy.to, copy.bytes(), true, copy.site);
  stages::fill(copy.to, copy.bytes());
  shared_memory::start_copy({copy.to, copy.bytes()}, copy.site);
  std::memset(copy.to, 0xff, copy.bytes());
  if (options().landing == Landing::early)
    land(copy);
  else
    under_way.push_back(std::move(copy));
}

const char* refusal(const void* data, int64_t stride, int rows, int most_rows) {
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % kChunk == 0;
  return aligned && rows >= 1 && rows <= most_rows ? nullptr : "the driver refuses the tensor map";
}

}  // namespace

void tensor_copies::start() {
  under_way.clear();
  last_copies.clear();
}

bool tensor_copies::land_one() {
  if (under_way.empty()) return false;
  const bool last = options().order == Order::reverse || (options().order == Order::random && counters().switches % 2);
  const auto it = last ? under_way.end() - 1 : under_way.begin();
  const Copy copy = std::move(*it);
  under_way.erase(it);
  land(copy);
  return true;
}

void tensor_copies::finish_block() {
  for (const auto& [entry, last] : last_copies) {
    bool known = false;
    for (unsigned t = 0; t < block.threads; ++t) known |= clocks::of(t)[entry] >= last.time;
    if (known) continue;
    tell("end", last.site, nullptr,
         text("the block ends, and nobody has waited for the copy that was started at %s.", place(last.site).c_str()));
  }
}

}  // namespace hifuse::emulation

namespace hifuse::cuda {
using namespace emulation;

const char* map_matrix(TensorMap& map, const void* data, int64_t rows, int64_t columns, int64_t row_stride, int box_rows) {
  map = {static_cast<const uint16_t*>(data), {columns, rows, 1, 1}, {1, row_stride, 0, 0}, box_rows, false};
  return refusal(data, row_stride, box_rows, 256);
}

const char* map_images(TensorMap& map, const void* data, int64_t images, int64_t height, int64_t width, int64_t channels,
                       int pixels) {
  map = {static_cast<const uint16_t*>(data),
         {channels, width, height, images},
         {1, channels, width * channels, height * width * channels},
         pixels,
         true};
  return refusal(data, channels, pixels, 1024);
}

void copy_tile(void* shared, const TensorMap* map, int x, int y, uint64_t* bar) {
  Copy copy{static_cast<std::byte*>(shared), {}, bar, HIFUSE_SITE};
  for (int64_t row = y; row < y + map->rows; ++row)
    for (int64_t column = x; column < x + kColumns; column += kChunk) {
      const bool inside = row >= 0 && row < map->sizes[1] && column >= 0 && column < map->sizes[0];
      copy.chunks.push_back(inside ? map->data + row * map->strides[1] + column : nullptr);
    }
  start_copy(std::move(copy));
}

// The box goes over the places where a 3x3 filter can lie: its upper left corner is at -1 to size - 2 of each axis.
void copy_pixels(void* shared, const TensorMap* map, int c, int x, int y, int n, int dx, int dy, uint64_t* bar) {
  Copy copy{static_cast<std::byte*>(shared), {}, bar, HIFUSE_SITE};
  const auto [channels, width, height, images] = map->sizes;
  for (int pixel = 0; pixel < map->rows; ++pixel) {
    const int64_t column = x + dx, row = y + dy;
    const bool on_image = n >= 0 && n < images && row >= 0 && row < height && column >= 0 && column < width;
    for (int64_t k = c; k < c + kColumns; k += kChunk) {
      const bool inside = on_image && k < channels;
      copy.chunks.push_back(inside ? map->data + n * map->strides[3] + row * map->strides[2] + column * map->strides[1] + k
                                   : nullptr);
    }
    if (++x > width - 2) x = -1, ++y;
    if (y > height - 2) y = -1, ++n;
  }
  start_copy(std::move(copy));
}

}  // namespace hifuse::cuda
