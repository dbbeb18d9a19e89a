// Small matrix products in registers: c[rows, columns] = a[rows, depth] x b[depth, columns], for operands that lie in L1 or L2.
//
// A block of kRows rows times kVectors vectors of columns is summed in registers: each step of the depth loads kVectors vectors
// of b and multiplies them by kRows broadcast elements of a. `a` has free strides, so a transposed operand needs no copy.
#pragma once

#include "cpu/vec.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

template <class T>
struct Strided {  // element (i, j) is at[i * row + j * column]
  const T* at;
  int64_t row;
  int64_t column;
};

// The blocks that leave registers for b: 7 x 4 + 4 of 32, 6 x 2 + 3 of 16. Seven rows divide 49, the tokens of a 7 x 7 window.
constexpr int kBlockRows = kRegisters == 32 ? 7 : 6;
constexpr int kBlockVectors = kRegisters == 32 ? 4 : 2;

// Long sums are cut into pieces of kDepth that are added up at the end: rounding errors then grow with the square root of the
// piece, not of the whole, as they do in a library's product.
constexpr int64_t kDepth = 32;

template <int kRows, int kVectors, class T>
[[gnu::always_inline]] inline void gemm_block(int64_t depth, const Strided<T>& a, const T* b, int64_t b_row, T* c,
                                              int64_t c_row) {
  const T* const at = a.at;
  const int64_t a_row = a.row, a_column = a.column;
  for (int64_t start = 0; start < depth; start += kDepth) {
    const int64_t end = start + kDepth < depth ? start + kDepth : depth;
    Vec<T> sums[kRows][kVectors] = {};
    for (int64_t k = start; k < end; ++k) {
      Vec<T> columns[kVectors];
      for (int v = 0; v < kVectors; ++v) columns[v] = load(b + k * b_row + v * kLanes<T>);
      for (int r = 0; r < kRows; ++r) {
        const T element = at[r * a_row + k * a_column];
        for (int v = 0; v < kVectors; ++v) sums[r][v] += element * columns[v];
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) {
        T* const to = c + r * c_row + v * kLanes<T>;
        store(to, start == 0 ? sums[r][v] : sums[r][v] + load(to));
      }
  }
}

// One block of `rows` <= kRows rows: the row count becomes a constant.
template <int kRows, int kVectors, class T>
inline void gemm_rows(int64_t rows, int64_t depth, const Strided<T>& a, const T* b, int64_t b_row, T* c, int64_t c_row) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return gemm_rows<kRows - 1, kVectors>(rows, depth, a, b, b_row, c, c_row);
  }
  gemm_block<kRows, kVectors>(depth, a, b, b_row, c, c_row);
}

template <int kVectors, class T>
inline void gemm_columns(int64_t rows, int64_t vectors, int64_t depth, const Strided<T>& a, const T* b, int64_t b_row, T* c,
                         int64_t c_row) {
  if constexpr (kVectors > 1) {
    if (vectors < kVectors) return gemm_columns<kVectors - 1>(rows, vectors, depth, a, b, b_row, c, c_row);
  }
  gemm_rows<kBlockRows, kVectors>(rows, depth, a, b, b_row, c, c_row);
}

// `columns` is a multiple of kLanes<T>; rows of b and c are as long.
template <class T>
inline void gemm(int64_t rows, int64_t columns, int64_t depth, const Strided<T>& a, const T* b, int64_t b_row, T* c,
                 int64_t c_row) {
  constexpr int64_t kWidth = kBlockVectors * kLanes<T>;
  for (int64_t i = 0; i < rows; i += kBlockRows) {
    const Strided<T> block{a.at + i * a.row, a.row, a.column};
    const int64_t height = rows - i < kBlockRows ? rows - i : kBlockRows;
    for (int64_t j = 0; j < columns; j += kWidth) {
      const int64_t vectors = (columns - j < kWidth ? columns - j : kWidth) / kLanes<T>;
      gemm_columns<kBlockVectors>(height, vectors, depth, block, b + j, b_row, c + i * c_row + j, c_row);
    }
  }
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
