// Window attention over contiguous maps, of which alone C has some.
#pragma once

#include "c/border.h"

namespace hifuse::c {

// Sizes that are too large are refused by `check`; until then their strides may wrap.
inline WindowAttentionForward attention(const hifuse_window_attention_params& p) {
  const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
  const uint64_t column = size(p.shape.num_heads) * size(p.shape.head_dim), row = column * size(p.shape.width);
  const uint64_t image = row * size(p.shape.height);
  const auto stride = [](uint64_t value) { return static_cast<int64_t>(value); };
  return {p.shape,
          {p.qkv, stride(3 * image), stride(3 * row), stride(3 * column)},
          p.bias_table,
          p.qkv_bias,
          {p.out, stride(image), stride(row), stride(column)}};
}

}  // namespace hifuse::c
