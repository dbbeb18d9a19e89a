#include "window_attention_forward_launch.cuh"

namespace hifuse::cuda {
template const char* window_attention_forward_of<f16>(const WindowAttentionForward&, int, void*);
}
