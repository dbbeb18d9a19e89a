"""The contract of the mixer: docstring, validation, choice of backend."""

from __future__ import annotations

from torch import Tensor

from hifuse_fast.backends.select import autocast_dtype, select
from hifuse_fast.checks import AUTOCAST, check_map, check_parameter
from hifuse_fast.ops.functions.fused import Fused, Product
from hifuse_fast.ops.functions.mixer import reference


def mixer(z: Tensor, weight: Tensor, *, backend: str = "auto") -> Tensor:
    r"""The 3x3 convolution of the inverted MLP, with its GELU and its residual.

    .. math:: u = z + \mathrm{GELU}(\mathrm{conv}_{3 \times 3}(z))

    with zero padding, no bias and the exact GELU. A GPU wants a dense weight in channels-last memory, which
    `model.to(memory_format=torch.channels_last)` gives. A weight in another layout is copied at every call.

    Equal inputs give equal bits, with one exception: cuDNN computes the gradients of a dense convolution on a GPU. It may add
    in any order, unless `torch.backends.cudnn.deterministic` (or `torch.use_deterministic_algorithms`) is set.

    Args:
        z: [B, H, W, C], any strides; floating.
        weight: [C, C, 3, 3], or [C, 1, 3, 3] for the depthwise convolution, any strides; of the dtype of `z`. Under autocast
            each of the two may be float32, bfloat16 or float16.
        backend: "auto", "reference", "native", "triton" or "cuda".

    Returns:
        [B, H, W, C], of the dtype of the convolution (that of `weight`, or autocast's), promoted with that of `z`.

    Raises:
        TypeError, ValueError: an argument that does not fit; the message names it, what it was and what was expected.
        BackendError: the backend asked for by name cannot serve the call.

    Source: `conv1` of the official HiFuse `IRMLP`, with the activation and the sum after it.
    """
    check_map("z", z)
    autocast = autocast_dtype(z)
    channels = z.size(3)
    depthwise = isinstance(weight, Tensor) and list(weight.shape) == [channels, 1, 3, 3]
    if isinstance(weight, Tensor) and not depthwise and list(weight.shape) != [channels, channels, 3, 3]:
        raise ValueError(f"weight must be {[channels, channels, 3, 3]} or {[channels, 1, 3, 3]}, got {list(weight.shape)}")
    check_parameter("weight", weight, getattr(weight, "shape", ()), z, (z.dtype,) if autocast is None else AUTOCAST)

    dtype = autocast or z.dtype
    key = (channels, "depthwise" if depthwise else "dense")
    kernels = select("mixer", backend, key=key, device=z.device, dtype=dtype, depthwise=depthwise)
    if kernels is None:
        return reference.mixer(z, weight)
    return _FUSED(kernels, (z, weight.to(dtype)), {})[0]


def _products(z: Tensor, weight: Tensor) -> list[Product]:
    pixels, groups = z.shape[0] * z.shape[1] * z.shape[2], len(weight) // weight.shape[1]
    return [Product(2 * pixels * weight.numel(), (0,), (1,), groups)]


_FUSED = Fused("mixer", "Tensor z, Tensor weight", "", reference.mixer, products=_products)
