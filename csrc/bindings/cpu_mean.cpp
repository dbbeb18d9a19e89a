// The mean over pixels.
#include "bindings/checks.h"
#include "bindings/packing.h"

namespace hifuse {
namespace {

void mean(const Tensor& x, Tensor out) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(1) * x.size(2) > 0, "x must be [B, H, W, C] with H and W at least 1");
  check_like("x", x, out, {x.size(0), x.size(1), x.size(2), x.size(3)});
  check_like("out", out, x, {x.size(0), 1, 1, x.size(3)});
  isa::kernels().mean(
      {dtype_of(x.scalar_type()), x.size(0), x.size(1) * x.size(2), x.size(3), x.const_data_ptr(), out.mutable_data_ptr()},
      threads());
}

}  // namespace
}  // namespace hifuse

STABLE_TORCH_LIBRARY_IMPL(hifuse_fast, CPU, m) { m.impl("mean_out", TORCH_BOX(&hifuse::mean)); }
