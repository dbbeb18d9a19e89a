// Vectors of the instruction set that this file is compiled for, on the compiler's own vector types: arithmetic is written with
// plain operators, and a * b + c becomes one fused instruction. Only what those types cannot say is said with intrinsics.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "geometry.h"  // HIFUSE_ISA

namespace hifuse {
inline namespace HIFUSE_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRegisters = 16;
#else
constexpr int kVectorBytes = 16;
constexpr int kRegisters = 16;
#endif

template <class T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::Type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <class T>
inline Vec<T> load(const T* from) {
  Vec<T> v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, Vec<T> v) {
  __builtin_memcpy(to, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T value) {
  return value - Vec<T>{};
}

// The larger and the smaller of each lane; a NaN in `a` gives b. (The masked form, with all lanes, spares GCC 12 a false
// warning.)
template <class T>
inline Vec<T> larger(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#endif
  return a > b ? a : b;
}
template <class T>
inline Vec<T> smaller(Vec<T> a, Vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
#endif
  return a < b ? a : b;
}

// Integers as wide as T, and the vector 0, 1, 2, ... of them.
template <class T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <class T>
inline Vec<Index<T>> lane_numbers() {
  if constexpr (kLanes<T> == 16) return Vec<Index<T>>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  if constexpr (kLanes<T> == 8) return Vec<Index<T>>{0, 1, 2, 3, 4, 5, 6, 7};
  if constexpr (kLanes<T> == 4) return Vec<Index<T>>{0, 1, 2, 3};
  if constexpr (kLanes<T> == 2) return Vec<Index<T>>{0, 1};
}

// Lane i of the result is lane i ^ kDistance of v.
template <int kDistance, class T>
inline Vec<T> exchange(Vec<T> v) {
  return __builtin_shuffle(v, lane_numbers<T>() ^ kDistance);
}

template <class T, int kDistance = kLanes<T> / 2>
inline T sum(Vec<T> v) {
  if constexpr (kDistance == 0)
    return v[0];
  else
    return sum<T, kDistance / 2>(v + exchange<kDistance, T>(v));
}

template <class T, int kDistance = kLanes<T> / 2>
inline T largest(Vec<T> v) {
  if constexpr (kDistance == 0)
    return v[0];
  else
    return largest<T, kDistance / 2>(larger<T>(v, exchange<kDistance, T>(v)));
}

// One round of a transposition: for each pair of rows i and i + kHalf, the lanes with bit kHalf set change sides.
template <int kHalf, class T>
inline void transpose_round(Vec<T>* rows) {
  constexpr int kSide = kLanes<T>;
  const Vec<Index<T>> lanes = lane_numbers<T>();
  const Vec<Index<T>> upper = (lanes & kHalf) != 0;  // all bits set, or none
  const Vec<Index<T>> low = (upper & (kSide + (lanes ^ kHalf))) | (~upper & lanes);
  const Vec<Index<T>> high = (upper & (kSide + lanes)) | (~upper & (lanes ^ kHalf));
#pragma GCC unroll 16
  for (int i = 0; i < kSide; ++i) {
    if (i & kHalf) continue;
    const Vec<T> a = rows[i], b = rows[i | kHalf];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i | kHalf] = __builtin_shuffle(a, b, high);
  }
  if constexpr (kHalf > 1) transpose_round<kHalf / 2, T>(rows);
}

// to[j, i] = from[i, j] for a square as wide as a vector.
template <class T>
inline void transpose_square(const T* from, int64_t from_row, T* to, int64_t to_row) {
  Vec<T> rows[kLanes<T>];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) rows[i] = load(from + i * from_row);
  transpose_round<kLanes<T> / 2, T>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i) store(to + i * to_row, rows[i]);
}

// 2^x for x <= 0, as softmax needs it: relative error 2e-7; NaN stays NaN. Below 2^-126 it gives 0: the weight of a masked key
// would be subnormal, and many CPUs multiply such numbers far more slowly.
// x = n + r with r in [-1/2, 1/2]: 2^r by a minimax polynomial, 2^n by writing n into the exponent.
inline Vec<float> exp2_nonpositive(Vec<float> x) {
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vec<float> shifted = x + kRound;
  const Vec<float> r = x - (shifted - kRound);
  Vec<float> p = splat(1.5461445e-4f);
  p = p * r + 1.3400428e-3f;
  p = p * r + 9.6180567e-3f;
  p = p * r + 5.5503272e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314721e-1f;
  p = p * r + 1.0f;
  const Bits exponent = ((Bits)shifted + (127 - 0x4B400000)) << 23;
  return x < -126.0f ? Vec<float>{} : p * (Vec<float>)exponent;
}

// float64 serves gradcheck: exactness counts, speed does not.
inline Vec<double> exp2_nonpositive(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = x[i] < -1022 ? 0 : exp2(x[i]);
  return x;
}

// Scratch memory: aligned to a cache line; `take` zeroes it, `take_dirty` does not. It belongs to the thread, which keeps it
// for its next call: memory that is given back to the system costs a page fault per 4 KB when it returns. What a scope took is
// free again at its end.
class Scratch {
 public:
  Scratch() : first_(blocks().taken) {}
  ~Scratch() { blocks().taken = first_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* take(int64_t count) {
    T* const taken = take_dirty<T>(count);
    __builtin_memset(static_cast<void*>(taken), 0, static_cast<size_t>(count) * sizeof(T));
    return taken;
  }

  template <class T>
  T* take_dirty(int64_t count) {
    Blocks& mine = blocks();
    if (mine.taken == kMost) throw std::bad_alloc();
    Block& block = mine.block[mine.taken++];
    block.grow((static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64 + kSpare);
    return static_cast<T*>(block.at);
  }

 private:
  struct Block {
    void* at = nullptr;
    size_t bytes = 0;

    void grow(size_t wanted) {
      if (wanted <= bytes) return;
      void* const grown = aligned_alloc(64, wanted);
      if (!grown) throw std::bad_alloc();
      free(at);
      at = grown;
      bytes = wanted;
    }
    ~Block() { free(at); }
  };
#if defined(__AMX_TILE__)
  static constexpr size_t kSpare = 15 * 64;  // tiles of 16 rows read behind the last row (amx.h)
#else
  static constexpr size_t kSpare = 0;
#endif
  static constexpr int kMost = 48;
  struct Blocks {
    Block block[kMost];
    int taken = 0;
  };
  static Blocks& blocks() {
    thread_local Blocks mine;
    return mine;
  }

  int first_;
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
