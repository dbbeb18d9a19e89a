// The kernels of one instruction set; compiled once per set, like every kernel file.
#include "cpu/amx.h"
#include "cpu/kernels.h"
#include "cpu/prepared.h"
#include "cpu/window_attention.h"

namespace hifuse {
inline namespace HIFUSE_ISA {

// The kernel; where the set has tiles (amx.h), on threads that may use them.
template <auto kKernel, class Args>
void lent(const Args& args, const Parallel& parallel) {
#if defined(__AMX_TILE__)
  kKernel(args, WithTiles(parallel));
#else
  kKernel(args, parallel);
#endif
}

extern const KernelTable table;
const KernelTable table = {
    .window_attention_forward = &lent<&window_attention_forward>,
    .window_attention_backward = &lent<&window_attention_backward>,
    .pack_linear = &lent<&pack_linear>,
    .pack_strassen = &lent<&pack_strassen>,
    .pack_winograd = &lent<&pack_winograd>,
    .linear = &lent<&linear>,
    .stem = &lent<&stem>,
    .gated_concat = &lent<&gated_concat>,
    .mixer = &lent<&mixer>,
    .mixer_filters_gradient = &lent<&mixer_filters_gradient>,
    .mlp = &lent<&mlp>,
    .mean = &lent<&mean>,
    .pack_int8 = &lent<&pack_int8>,
    .pack_int8_filters = &lent<&pack_int8_filters>,
};

}  // namespace HIFUSE_ISA
}  // namespace hifuse
