"""The contract of layer normalisation: docstring, validation, choice of backend."""

from __future__ import annotations

import torch
from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import check_choice, check_eps, check_map, check_one_dtype, check_parameter
from hifuse_fast.ops.functions.fused import Fused
from hifuse_fast.ops.functions.layer_norm import reference

ROWS = ("pixels", "patches")


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5, rows: str = "pixels", backend: str = "auto"
) -> Tensor:
    r"""Layer normalisation over the channels of each pixel, or of each 2x2 patch, of a map.

    .. math:: y = \frac{r - \mathrm{mean}(r)}{\sqrt{\mathrm{var}(r) + eps}} \cdot weight + bias

    for every row r. With rows="pixels" a row is the C channels of a pixel. With rows="patches" it is the 4C channels of a 2x2
    patch, its pixels in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1); the map is zero-padded at the right and the
    bottom to an even size.

    Args:
        x: [B, H, W, C], any strides; floating.
        weight, bias: [C], or [4C] with patches; of the dtype of `x`, or float32.
        eps: added to the variance (biased, as everywhere in layer normalisation).
        rows: "pixels" or "patches".
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        [B, H, W, C], or [B, ceil(H / 2), ceil(W / 2), 4C] with patches. The dtype is that of `x`; under autocast on CUDA it is
        float32, as in PyTorch.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: Ba et al. 2016; the official HiFuse `LayerNorm`, `nn.LayerNorm` and `PatchMerging` up to its linear.
    """
    eps, rows = check_eps("eps", eps), check_choice("rows", rows, ROWS)
    check_map("x", x)
    width = x.size(3) * (4 if rows == "patches" else 1)
    check_parameter("weight", weight, [width], x)
    check_parameter("bias", bias, [width], x)
    kernels = select("layer_norm", backend, key=(width, rows), device=x.device, dtype=x.dtype, width=width)
    if kernels is None:
        check_one_dtype(weight=weight, bias=bias)
        return reference.layer_norm(x, weight, bias, eps=eps, rows=rows)
    dtype = torch.float32 if x.is_cuda and autocast_dtype(x) else x.dtype
    return _FUSED(kernels, (x, weight, bias), {"eps": eps, "rows": rows, "dtype": dtype})[0]


def _definition(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, rows: str, dtype: torch.dtype) -> Tensor:
    return reference.layer_norm(x, weight, bias, eps=eps, rows=rows).to(dtype)


_FUSED = Fused(
    "layer_norm", "Tensor x, Tensor weight, Tensor bias", "float eps, str rows, ScalarType dtype", _definition
)  # fmt: skip
