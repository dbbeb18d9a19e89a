// The entry points of the prepared ops and of the mixer's backward; see arguments.h and kernels.h for what they are given.
#pragma once

#include "cpu/kernels.h"
#include "geometry.h"  // HIFUSE_ISA

namespace hifuse {
inline namespace HIFUSE_ISA {

void pack_linear(const PackLinear&, const Parallel&);
void pack_int8(const PackInt8&, const Parallel&);
void pack_int8_filters(const PackInt8Filters&, const Parallel&);
void pack_strassen(const PackStrassen&, const Parallel&);
void pack_winograd(const PackWinograd&, const Parallel&);
void linear(const Linear&, const Parallel&);
void stem(const Stem&, const Parallel&);
void gated_concat(const GatedConcat&, const Parallel&);
void mixer(const Mixer&, const Parallel&);
void mix_directly(const Mixer&, const Parallel&);
void mix_in_int8(const Mixer&, const Parallel&);
void mix_in_int8_by_winograd(const Mixer&, const Parallel&);
void mix_depthwise(const Mixer&, const Parallel&);
void mixer_filters_gradient(const MixerFiltersGradient&, const Parallel&);
void mlp(const Mlp&, const Parallel&);
void mlp_int8(const Mlp&, const Parallel&);
void mean(const Mean&, const Parallel&);

}  // namespace HIFUSE_ISA
}  // namespace hifuse
