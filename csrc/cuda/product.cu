// The entry points of products: which kernels serve a call.
#include <algorithm>

#include "kernels.h"
#include "product_parts.h"
#include "storage.cuh"

namespace hifuse::cuda {

// In a file for each dtype.
template <class T>
const char* products_of(const Product* all, int count, const PartsRoom& room, int multiprocessors, void* stream);

int64_t products_scratch(const Product* all, int count, int multiprocessors) {
  int64_t sum = 0, most = 0;
  for (int i = 0; i < count; ++i) {
    const int64_t bytes = parts_of(all[i]).scratch_on(multiprocessors);
    sum += bytes;
    most = std::max(most, bytes);
  }
  return product_launches(all, count, multiprocessors) == 1 ? sum : most;
}

int64_t product_counters(int multiprocessors) { return int64_t(kMostProducts) * multiprocessors; }

int product_launches(const Product* all, int count, int multiprocessors) {
  int64_t blocks = 0;
  for (int i = 0; i < count; ++i) blocks += parts_of(all[i]).blocks_on(multiprocessors);
  return count == 1 || blocks <= kBlocksAtOnce * multiprocessors ? 1 : count;
}

static const char* refusal(const Product& a) {
  int64_t depth = 0;
  for (const int64_t channels : a.channels) depth += channels * (a.source == Source::pixels ? 1 : 9);
  if (a.height >= 32768 || a.width >= 32768) return "the maps are more than 32767 pixels high or wide";
  if (a.batch * (a.height + a.height % 2) * (a.width + a.width % 2) >= INT32_MAX) return "the maps have more than 2^31 pixels";
  if (depth >= INT32_MAX || a.columns >= INT32_MAX) return "the weight has more than 2^31 rows or columns";
  return nullptr;
}

static const char* launch_together(const Product* all, int count, const PartsRoom& room, int multiprocessors, void* stream) {
  switch (all[0].dtype) {
    case DType::float32: return products_of<float>(all, count, room, multiprocessors, stream);
    case DType::bfloat16: return products_of<bf16>(all, count, room, multiprocessors, stream);
    case DType::float16: return products_of<f16>(all, count, room, multiprocessors, stream);
    default: return "there is no kernel for float64";
  }
}

const char* products(const Product* all, int count, const PartsRoom& room, int multiprocessors, void* stream) {
  if (count < 1 || count > kMostProducts) return "one to three products are called together";
  for (int i = 0; i < count; ++i) {
    if (const char* error = refusal(all[i])) return error;
    if (all[i].dtype != all[0].dtype) return "products that are called together have one dtype";
  }
  const int launches = product_launches(all, count, multiprocessors), of_launch = count / launches;
  const char* error = nullptr;
  for (int i = 0; i < launches && error == nullptr; ++i)
    error = launch_together(all + i * of_launch, of_launch, room, multiprocessors, stream);
  return error;
}

}  // namespace hifuse::cuda
