// The mean over the pixels of each image. Sums are float64, in the order of the pixels: exact unless values lie 2^20 apart.
#include "cpu/prepared.h"
#include "cpu/storage.h"

namespace hifuse {
inline namespace HIFUSE_ISA {
namespace {

constexpr int64_t kChannels = 64;  // of a task

template <class S>
class MeanKernel {
 public:
  explicit MeanKernel(const Mean& args) : args_(args) {}

  void run(const Parallel& parallel) const {
    const int64_t blocks = (args_.channels + kChannels - 1) / kChannels;
    parallel.each(args_.batch * blocks, [&](int64_t task) { add(task / blocks, task % blocks * kChannels); });
  }

 private:
  void add(int64_t image, int64_t channel) const {
    const int64_t count = args_.channels - channel < kChannels ? args_.channels - channel : kChannels;
    const S* from = static_cast<const S*>(args_.x) + image * args_.pixels * args_.channels + channel;
    double sums[kChannels] = {};
    for (int64_t pixel = 0; pixel < args_.pixels; ++pixel, from += args_.channels)
      for (int64_t i = 0; i < count; ++i) sums[i] += static_cast<double>(widen(from[i]));
    S* const to = static_cast<S*>(args_.out) + image * args_.channels + channel;
    for (int64_t i = 0; i < count; ++i) narrow(static_cast<float>(sums[i] / static_cast<double>(args_.pixels)), to[i]);
  }

  const Mean& args_;
};

}  // namespace

void mean(const Mean& args, const Parallel& parallel) {
  run_prepared<MeanKernel>(args.dtype, &KernelTable::mean, args, parallel);
}

}  // namespace HIFUSE_ISA
}  // namespace hifuse
