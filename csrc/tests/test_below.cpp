// A set with kernels for maps of bfloat16 alone: other maps go to the set below it, here to `baseline`, which every CPU runs.
#include <type_traits>

#include "check.h"
#include "cpu/storage.h"

int failures = 0;

using namespace hifuse;

namespace {

int own = 0;  // calls of this set's kernel

template <class Stored>
struct Kernel {
  static_assert(std::is_same_v<Stored, BFloat16>, "the set below has this kernel");
  explicit Kernel(const Mean&) {}
  void run(const Parallel&) const { ++own; }
};

const Parallel kAlone{1, nullptr, [](void*, int64_t count, void* context, void (*body)(void*, int64_t)) {
                        for (int64_t task = 0; task < count; ++task) body(context, task);
                      }};

}  // namespace

int main() {
  const float x[] = {1, 2, 6};
  float out = 0;
  run_prepared<Kernel>(DType::float32, &KernelTable::mean, Mean{DType::float32, 1, 3, 1, x, &out}, kAlone);
  CHECK(out == 3 && own == 0);
  run_prepared<Kernel>(DType::bfloat16, &KernelTable::mean, Mean{DType::bfloat16, 1, 3, 1, x, &out}, kAlone);
  CHECK(out == 3 && own == 1);
  std::printf("below: %d failed\n", failures);
  return failures ? 1 : 0;
}
