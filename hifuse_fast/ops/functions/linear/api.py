"""The contract of the linear: docstring, validation, choice of backend."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import AUTOCAST, check_choice, check_eps, check_map, check_one_dtype, check_parameter
from hifuse_fast.ops.functions.fused import Fused, Product
from hifuse_fast.ops.functions.layer_norm.reference import patches
from hifuse_fast.ops.functions.linear import reference

ROWS = ("pixels", "patches")
ACTIVATIONS = ("none", "gelu")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    eps: float = 1e-5,
    rows: str = "pixels",
    activation: str = "none",
    residual: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""A linear over the rows of a map, with the layer normalisation before it and the activation and sum after it.

    .. math:: y = residual + \mathrm{act}(\mathrm{LN}(rows(x)) W^T + b)

    A row is the C channels of a pixel. With rows="patches" it is the 4C channels of a 2x2 patch, as in
    `hifuse_fast.ops.layer_norm`: its pixels in the order (row, column) = (0, 0), (1, 0), (0, 1), (1, 1), the map zero-padded at
    the right and the bottom to an even size. K is the width of a row. H', W' are H, W; with patches ceil(H / 2), ceil(W / 2).

    Args:
        x: [B, H, W, C], any strides; floating.
        weight: [N, K].
        bias: [N] or None.
        norm_weight, norm_bias: [K], scale and shift of the layer normalisation of each row; both None for no normalisation.
        eps: of the normalisation.
        rows: "pixels" or "patches".
        activation: "none" or "gelu" (the exact one, with erf).
        residual: [B, H', W', N] or None.
        backend: "auto", "reference", "native", "triton" or "cuda".

        `weight` and `bias` are of the dtype of `x`; `norm_weight`, `norm_bias` and `residual` of that, or float32. Under
        autocast each of `x`, `weight`, `bias` and `residual` may be float32, bfloat16 or float16.

    Returns:
        [B, H', W', N], of the dtype of the product (that of `weight`, or autocast's), promoted with the residual's.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: the official HiFuse: `qkv`, `proj` and `fc1` of its `Global_block`, `pwconv` of its `Local_block`, `PatchMerging`.
    """
    eps, rows = check_eps("eps", eps), check_choice("rows", rows, ROWS)
    check_choice("activation", activation, ACTIVATIONS)
    check_map("x", x)
    autocast = autocast_dtype(x)
    dtypes = (x.dtype,) if autocast is None else AUTOCAST
    width = x.size(3) * (4 if rows == "patches" else 1)
    if isinstance(weight, Tensor) and (weight.dim() != 2 or weight.shape[1] != width or weight.shape[0] == 0):
        raise ValueError(f"weight must be [N, {width}] with rows={rows!r}, got {list(weight.shape)}")
    check_parameter("weight", weight, getattr(weight, "shape", ()), x, dtypes)
    if bias is not None:
        check_parameter("bias", bias, weight.shape[:1], x, dtypes)
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("norm_weight and norm_bias must be given both or neither")
    if norm_weight is not None:
        check_parameter("norm_weight", norm_weight, [width], x)
        check_parameter("norm_bias", norm_bias, [width], x)
    if residual is not None:
        batch, height, wide = ((n + 1) // 2 if rows == "patches" and i else n for i, n in enumerate(x.shape[:3]))
        check_parameter("residual", residual, [batch, height, wide, len(weight)], x, None if autocast is None else AUTOCAST)

    dtype = autocast or x.dtype
    normed_width = 1 if norm_weight is None else width
    after = ("" if activation == "none" else activation, "" if residual is None else "residual")
    key = (width, len(weight), rows, "" if norm_weight is None else "norm", *after)
    kernels = select("linear", backend, key=key, device=x.device, dtype=dtype, width=normed_width)
    if kernels is None:
        check_one_dtype(norm_weight=norm_weight, norm_bias=norm_bias)
        return reference.linear(
            x, weight, bias, norm_weight, norm_bias, residual, eps=eps, rows=rows, activation=activation
        )  # fmt: skip
    if norm_weight is None and rows == "patches":
        x, rows = patches(x), "pixels"  # the network has no such call: the kernels gather only what they normalise
    tensors = (x, weight.to(dtype), None if bias is None else bias.to(dtype), norm_weight, norm_bias, residual)
    return _FUSED(kernels, tensors, {"eps": eps, "rows": rows, "activation": activation})[0]


def _products(x: Tensor, weight: Tensor, *_: Any, rows: str, **__: Any) -> list[Product]:
    height, width = ((n + 1) // 2 if rows == "patches" else n for n in x.shape[1:3])
    return [Product(2 * x.shape[0] * height * width * weight.numel(), (0, 3, 4), (1,))]


_FUSED = Fused(
    "linear",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias, Tensor? residual",
    "float eps, str rows, str activation",
    reference.linear,
    added=5,
    products=_products,
)
