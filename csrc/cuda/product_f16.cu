#include "product_launch.cuh"

namespace hifuse::cuda {
template const char* product_of<f16>(const Product&, void*);
}
