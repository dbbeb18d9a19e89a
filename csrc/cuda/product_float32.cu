#include "product_launch.cuh"

namespace hifuse::cuda {
template const char* product_of<float>(const Product&, void*);
}
