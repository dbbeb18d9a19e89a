// Windows, shift, regions and padding of a token map: one definition for CPU and CUDA.
//
// The map [height, width] is padded at the right and the bottom to a multiple of the window, rolled by -shift, and cut into
// windows. A token is named by its place on that rolled map; `source` says where it came from.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HIFUSE_HD __host__ __device__
#else
#define HIFUSE_HD
#endif

// Every instruction set gets its own copy of inline code, or the linker might keep the copy that this CPU cannot run.
#ifndef HIFUSE_ISA
#define HIFUSE_ISA baseline
#endif

namespace hifuse {
inline namespace HIFUSE_ISA {

// One axis of the map: `length` tokens, padded to `windows * window`.
struct Axis {
  int64_t length;
  int64_t window;
  int64_t shift;
  int64_t windows;
  int64_t padded;

  HIFUSE_HD Axis(int64_t length, int64_t window, int64_t shift)
      : length(length), window(window), shift(shift), windows((length + window - 1) / window), padded(windows * window) {}

  // Place on the unrolled axis of place `at` on the rolled one; `length` or more for a padded token.
  HIFUSE_HD int64_t source(int64_t at) const { return at + shift < padded ? at + shift : at + shift - padded; }

  // Region of the shift mask: slices (0, -window) (-window, -shift) (-shift, end) of the rolled, padded axis.
  HIFUSE_HD int region(int64_t at) const { return (at >= padded - window) + (at >= padded - shift); }

  // Whether window `index` holds tokens of more than one region.
  HIFUSE_HD bool mixed(int64_t index) const { return shift > 0 && index == windows - 1; }
};

// The windows of a map, named (row, column).
struct WindowGrid {
  Axis rows;
  Axis columns;

  HIFUSE_HD WindowGrid(int64_t height, int64_t width, int64_t window, int64_t shift)
      : rows(height, window, shift), columns(width, window, shift) {}

  HIFUSE_HD int64_t windows() const { return rows.windows * columns.windows; }
  HIFUSE_HD int64_t tokens() const { return rows.window * columns.window; }
  HIFUSE_HD bool mixed(int64_t row, int64_t column) const { return rows.mixed(row) || columns.mixed(column); }
};

// Row of the bias table for the query at (y, x) of the window and the first key of key row `key_row`; the keys to the right of
// that one have the rows before it.
HIFUSE_HD inline int64_t bias_row(int64_t window, int64_t y, int64_t x, int64_t key_row) {
  return (y - key_row + window - 1) * (2 * window - 1) + x + window - 1;
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
