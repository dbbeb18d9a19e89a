// Whether this CPU multiplies quads of bytes in vectors of 256 bits (AVX-VNNI), as many do that have no AVX-512. Ask where AVX2
// runs: its registers are those.
#pragma once

namespace hifuse {

bool has_avx_vnni();

}  // namespace hifuse
