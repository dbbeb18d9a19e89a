#include "window_attention_backward_launch.cuh"

namespace hifuse::cuda {
template const char* window_attention_backward_of<float>(const WindowAttentionBackward&, const BackwardPlan&, void*, void*);
}
