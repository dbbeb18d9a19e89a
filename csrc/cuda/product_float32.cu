#include "product_launch.cuh"

namespace hifuse::cuda {
template const char* products_of<float>(const Product*, int, const PartsRoom&, int, void*);
}
