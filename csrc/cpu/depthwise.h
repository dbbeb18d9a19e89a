// The depthwise 3x3 convolution of one pixel, zeros around the map; filters are [9, channels], tap by tap. The bias comes last:
// each product that is added to a larger number is rounded as that is.
#pragma once

#include "cpu/rows.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

template <class S>
struct DepthwiseMap {
  const S* map;
  int64_t height;
  int64_t width;
  int64_t channels;
  const float* filters;
  const float* bias;  // or null

  // to[channels] = the convolution at `pixel`, counted over the whole batch.
  void convolve(int64_t pixel, float* to) const {
    const int64_t y = pixel / width % height, x = pixel % width;
    if (y > 0 && y + 1 < height && x > 0 && x + 1 < width) return add_taps<true>(pixel, y, x, to);
    add_taps<false>(pixel, y, x, to);
  }

 private:
  template <bool kInside>
  void add_taps(int64_t pixel, int64_t y, int64_t x, float* to) const {
    int64_t channel = 0;
    for (; channel + kLanes<float> <= channels; channel += kLanes<float>) {
      Vec<float> total = {};
#pragma GCC unroll 9
      for (int tap = 0; tap < 9; ++tap) {
        if (!kInside && !covers(y, x, tap)) continue;
        total += load_wide(at(pixel, tap) + channel) * load(filters + tap * channels + channel);
      }
      store(to + channel, bias ? total + load(bias + channel) : total);
    }
    for (; channel < channels; ++channel) {
      float total = 0;
      for (int tap = 0; tap < 9; ++tap)
        if (covers(y, x, tap)) total += widen(at(pixel, tap)[channel]) * filters[tap * channels + channel];
      to[channel] = bias ? total + bias[channel] : total;
    }
  }

  bool covers(int64_t y, int64_t x, int tap) const {
    const int64_t row = y + tap / 3 - 1, column = x + tap % 3 - 1;
    return row >= 0 && row < height && column >= 0 && column < width;
  }
  const S* at(int64_t pixel, int tap) const { return map + (pixel + (tap / 3 - 1) * width + tap % 3 - 1) * channels; }
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
