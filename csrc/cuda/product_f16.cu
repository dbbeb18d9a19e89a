#include "product_launch.cuh"

namespace hifuse::cuda {
template const char* products_of<f16>(const Product*, int, const PartsRoom&, int, void*);
}
