"""The contract of the MLP: docstring, validation, choice of backend."""

from __future__ import annotations

from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import AUTOCAST, check_map, check_parameter
from hifuse_fast.ops.functions.fused import Fused, Product
from hifuse_fast.ops.functions.mlp import reference


def mlp(u: Tensor, expand_weight: Tensor, project_weight: Tensor, *, backend: str = "auto") -> Tensor:
    r"""The two linears of the inverted MLP.

    .. math:: y = W_3 \, \mathrm{GELU}(W_2 u)

    with the exact GELU, over the channels of each pixel. There are no biases, because a batch norm follows. On a GPU
    the whole hidden map is never in memory: kernels compute it in parts, and the backward computes it once more. On a CPU the
    backward finds it in memory, in float32 once, where the reference keeps it before and after GELU.

    Args:
        u: [B, H, W, K], any strides; floating.
        expand_weight: W_2, [hidden, K].
        project_weight: W_3, [N, hidden].
        backend: "auto", "reference", "native", "triton" or "cuda".

        The weights are of the dtype of `u`. Under autocast each of the three may be float32, bfloat16 or float16.

    Returns:
        [B, H, W, N], of the dtype of the products: that of the weights, or autocast's.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: `conv2` and `conv3` of the official HiFuse `IRMLP`, without the batch norm.
    """
    check_map("u", u)
    autocast = autocast_dtype(u)
    dtypes = (u.dtype,) if autocast is None else AUTOCAST
    expand, project = (getattr(weight, "shape", None) for weight in (expand_weight, project_weight))
    if expand is not None and (len(expand) != 2 or expand[1] != u.size(3) or expand[0] == 0):
        raise ValueError(f"expand_weight must be [hidden, {u.size(3)}], got {list(expand)}")
    check_parameter("expand_weight", expand_weight, expand or (), u, dtypes)
    if project is not None and (len(project) != 2 or project[1] != len(expand_weight) or project[0] == 0):
        raise ValueError(f"project_weight must be [N, {len(expand_weight)}], got {list(project)}")
    check_parameter("project_weight", project_weight, project or (), u, dtypes)

    dtype = autocast or u.dtype
    key = (u.size(3), len(expand_weight), len(project_weight))
    kernels = select("mlp", backend, key=key, device=u.device, dtype=dtype)
    if kernels is None:
        return reference.mlp(u, expand_weight, project_weight)
    return _FUSED(kernels, (u, expand_weight.to(dtype), project_weight.to(dtype)), {})[0]


def _products(u: Tensor, expand_weight: Tensor, project_weight: Tensor) -> list[Product]:
    twice = 2 * u.shape[0] * u.shape[1] * u.shape[2]
    return [Product(twice * expand_weight.numel(), (0,), (1,)), Product(twice * project_weight.numel(), (0, 1), (2,))]


_FUSED = Fused("mlp", "Tensor u, Tensor expand_weight, Tensor project_weight", "", reference.mlp, products=_products)
