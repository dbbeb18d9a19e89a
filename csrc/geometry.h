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

// One axis of the map: `length` tokens, padded to `windows * window`. Int is a type that holds these numbers.
template <class Int>
struct AxisOf {
  Int length;
  Int window;
  Int shift;
  Int windows;
  Int padded;

  HIFUSE_HD AxisOf(Int length, Int window, Int shift)
      : length(length), window(window), shift(shift), windows((length + window - 1) / window), padded(windows * window) {}

  // Place on the unrolled axis of place `at` on the rolled one; `length` or more for a padded token.
  HIFUSE_HD Int source(Int at) const { return at + shift < padded ? at + shift : at + shift - padded; }

  // Region of the shift mask: slices (0, -window) (-window, -shift) (-shift, end) of the rolled, padded axis.
  HIFUSE_HD int region(Int at) const { return (at >= padded - window) + (at >= padded - shift); }

  // Whether window `index` holds tokens of more than one region.
  HIFUSE_HD bool mixed(Int index) const { return shift > 0 && index == windows - 1; }

  // Whether all tokens of window `index` lie on the map, side by side as in the window.
  HIFUSE_HD bool whole(Int index) const { return (index + 1) * window + shift <= length; }
};

// The windows of a map, named (row, column).
template <class Int>
struct WindowGridOf {
  AxisOf<Int> rows;
  AxisOf<Int> columns;

  HIFUSE_HD WindowGridOf(Int height, Int width, Int window, Int shift)
      : rows(height, window, shift), columns(width, window, shift) {}

  HIFUSE_HD Int windows() const { return rows.windows * columns.windows; }
  HIFUSE_HD Int tokens() const { return rows.window * columns.window; }
  HIFUSE_HD bool mixed(Int row, Int column) const { return rows.mixed(row) || columns.mixed(column); }
  HIFUSE_HD bool whole(Int row, Int column) const { return rows.whole(row) && columns.whole(column); }
};

using Axis = AxisOf<int64_t>;
using WindowGrid = WindowGridOf<int64_t>;

// Row of the bias table for the query at (y, x) of the window and the first key of key row `key_row`; the keys to the right of
// that one have the rows before it.
HIFUSE_HD inline int64_t bias_row(int64_t window, int64_t y, int64_t x, int64_t key_row) {
  return (y - key_row + window - 1) * (2 * window - 1) + x + window - 1;
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
