// The kernels of one instruction set; compiled once per set, like every kernel file.
#include "cpu/kernels.h"
#include "cpu/prepared.h"
#include "cpu/window_attention.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

extern const KernelTable table;
const KernelTable table = {
    .window_attention_forward = &window_attention_forward,
    .window_attention_backward = &window_attention_backward,
    .pack_linear = &pack_linear,
    .pack_strassen = &pack_strassen,
    .pack_winograd = &pack_winograd,
    .linear = &linear,
    .stem = &stem,
    .gated_concat = &gated_concat,
    .mixer = &mixer,
    .mixer_filters_gradient = &mixer_filters_gradient,
    .mlp = &mlp,
    .mean = &mean,
    .pack_int8 = &pack_int8,
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
