#include "product_launch.cuh"

namespace hifuse::cuda {
template const char* product_of<bf16>(const Product&, void*);
}
