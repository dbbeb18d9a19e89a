// The entry points of products: which kernels serve a call.
#include "kernels.h"
#include "storage.cuh"

namespace hifuse::cuda {

// In a file for each dtype.
template <class T>
const char* products_of(const Product* all, int count, const PartsRoom& room, void* stream);

static const char* refusal(const Product& a) {
  int64_t depth = 0;
  for (const int64_t channels : a.channels) depth += channels * (a.source == Source::pixels ? 1 : 9);
  if (a.height >= 32768 || a.width >= 32768) return "the maps are more than 32767 pixels high or wide";
  if (a.batch * (a.height + a.height % 2) * (a.width + a.width % 2) >= INT32_MAX) return "the maps have more than 2^31 pixels";
  if (depth >= INT32_MAX || a.columns >= INT32_MAX) return "the weight has more than 2^31 rows or columns";
  return nullptr;
}

const char* products(const Product* all, int count, const PartsRoom& room, void* stream) {
  if (count < 1 || count > kMostProducts) return "a launch has one to three products";
  for (int i = 0; i < count; ++i) {
    if (const char* error = refusal(all[i])) return error;
    if (all[i].dtype != all[0].dtype) return "the products of a launch have one dtype";
  }
  switch (all[0].dtype) {
    case DType::float32: return products_of<float>(all, count, room, stream);
    case DType::bfloat16: return products_of<bf16>(all, count, room, stream);
    case DType::float16: return products_of<f16>(all, count, room, stream);
    default: return "there is no kernel for float64";
  }
}

}  // namespace hifuse::cuda
