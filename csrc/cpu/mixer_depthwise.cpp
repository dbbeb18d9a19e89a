// out = z + gelu(conv3x3(z)) with a filter for each channel.
#include "cpu/activation.h"
#include "cpu/depthwise.h"
#include "cpu/prepared.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

template <class S>
class DepthwiseKernel {
 public:
  explicit DepthwiseKernel(const Mixer& args) : args_(args) {}

  void run(const Parallel& parallel) const {
    const int64_t pixels = args_.batch * args_.height * args_.width, blocks = divide_up(pixels, 16);
    parallel.each(blocks, [&](int64_t block) { mix(pixels * block / blocks, pixels * (block + 1) / blocks); });
  }

 private:
  void mix(int64_t first, int64_t last) const {
    Scratch scratch;
    float* const mixed = scratch.take<float>(padded_depth(args_.channels));
    const S* const z = static_cast<const S*>(args_.z);
    const float* const filters = static_cast<const float*>(args_.weight);
    const DepthwiseMap<S> map{z, args_.height, args_.width, args_.channels, filters, nullptr};
    for (int64_t pixel = first; pixel < last; ++pixel) {
      map.convolve(pixel, mixed);
      for (int64_t channel = 0; channel < args_.channels; channel += kPanel) {
        const int64_t count = args_.channels - channel < kPanel ? args_.channels - channel : kPanel;
        float* const part = mixed + channel;
        for (int64_t i = 0; i < kPanel; i += kLanes<float>) store(part + i, gelu<S>(load(part + i)));
        add_columns(z + pixel * args_.channels + channel, part, count);
        write_columns(part, static_cast<S*>(args_.out) + pixel * args_.channels + channel, count);
      }
    }
  }

  const Mixer& args_;
};

}  // namespace

void mix_depthwise(const Mixer& args, const Parallel& parallel) {
  run_prepared<DepthwiseKernel>(args.dtype, &KernelTable::mixer, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
