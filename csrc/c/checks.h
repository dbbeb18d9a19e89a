// Checks of what an op is given; they throw Refused, and the message names the field.
#pragma once

#include "c/border.h"

namespace hifuse::c {

constexpr int64_t kMostOfAnAxis = INT32_MAX;  // of sizes, channels and columns

void check(const Linear&);
void check(const Stem&);
void check(const GatedConcat&);
void check(const Mixer&);
void check(const Mlp&);
void check(const Mean&);
void check(const WindowAttentionForward&);

// Of a weight that is packed, and of how: what the ops check too.
void check_matrix(DType dtype, Algorithm algorithm, int64_t columns, int64_t depth);
void check_filters(DType dtype, Algorithm algorithm, int64_t channels);

// The product of sizes, of which none is negative; refused where `what` would be too large for an address.
int64_t product_of(const char* what, std::initializer_list<int64_t> sizes);

inline int64_t bytes_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace hifuse::c
