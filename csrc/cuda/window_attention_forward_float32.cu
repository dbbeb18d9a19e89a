#include "window_attention_forward_launch.cuh"

namespace hifuse::cuda {
template const char* window_attention_forward_of<float>(const WindowAttentionForward&, int, void*);
}
