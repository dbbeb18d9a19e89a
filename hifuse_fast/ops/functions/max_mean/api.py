"""The contract of largest value and mean: docstring, validation, choice of backend."""

from __future__ import annotations

from torch import Tensor

from hifuse_fast.backends.select import select
from hifuse_fast.checks import check_choice, check_map
from hifuse_fast.ops.functions.fused import Fused
from hifuse_fast.ops.functions.max_mean import reference

OVER = ("channels", "pixels")


def max_mean(x: Tensor, *, over: str, backend: str = "auto") -> Tensor:
    r"""The largest value and the mean of a map, from one reading of it.

    over="channels": :math:`y_{bhw} = (\max_c x_{bhwc}, \mathrm{mean}_c x_{bhwc})`, [B, H, W, C] -> [B, H, W, 2].
    over="pixels": :math:`y_b = (\max_{hw} x_{bhwc}, \mathrm{mean}_{hw} x_{bhwc})`, [B, H, W, C] -> [B, 2, 1, C].

    Where several elements have the largest value, its gradient goes to the first of them, as in PyTorch.

    Args:
        x: [B, H, W, C], floating.
        over: "channels" or "pixels".
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        The dtype of `x`.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: Woo et al. 2018 (CBAM), equations 2 and 3; the inputs of the gates in the official HiFuse `HFF_block`.
    """
    check_choice("over", over, OVER)
    check_map("x", x)
    kernels = select("max_mean", backend, key=(x.size(3), over), device=x.device, dtype=x.dtype, width=x.size(3))
    if kernels is None:
        return reference.max_mean(x, over=over)
    return _FUSED(kernels, (x,), {"over": over})[0]


_FUSED = Fused("max_mean", "Tensor x", "str over", reference.max_mean)
