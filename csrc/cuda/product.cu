// The entry points of products: which kernels serve a call.
#include "kernels.h"
#include "product_parts.h"
#include "storage.cuh"

namespace hifuse::cuda {

// In a file for each dtype.
template <class T>
const char* product_of(const Product& a, void* stream);

int64_t product_scratch(const Product& a, int multiprocessors) {
  const ProductParts parts = parts_of(a);
  if (parts.count == 1 || parts.tiles >= multiprocessors) return 0;
  return parts.count * parts.tiles * parts.tile_rows * kTileColumns * int64_t(sizeof(float));
}

const char* product(const Product& a, void* stream) {
  int64_t depth = 0;
  for (const int64_t channels : a.channels) depth += channels * (a.source == Source::pixels ? 1 : 9);
  if (a.height >= 32768 || a.width >= 32768) return "the maps are more than 32767 pixels high or wide";
  if (a.batch * (a.height + a.height % 2) * (a.width + a.width % 2) >= INT32_MAX) return "the maps have more than 2^31 pixels";
  if (depth >= INT32_MAX || a.columns >= INT32_MAX) return "the weight has more than 2^31 rows or columns";
  switch (a.dtype) {
    case DType::float32: return product_of<float>(a, stream);
    case DType::bfloat16: return product_of<bf16>(a, stream);
    case DType::float16: return product_of<f16>(a, stream);
    default: return "there is no kernel for float64";
  }
}

}  // namespace hifuse::cuda
