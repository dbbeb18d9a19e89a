"""What the library's ops of the frozen network cost: the multiplications and additions of the products that they stand for.

An algorithm that needs fewer, Winograd's or Strassen's, is counted as the direct one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends import flops
from hifuse_fast.backends.native.algorithms import ALGORITHMS


def register() -> None:
    """Register the formula of every op that multiplies."""
    for name, formula in FORMULAS.items():
        flops.register(getattr(torch.ops.hifuse_fast, f"{name}_out"), formula)


def _pixels(x: Tensor) -> int:
    return prod(x.shape[:3])


def _window_attention(qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, out: Tensor, *sizes: Any, **_: Any) -> int:
    batch, height, width, channels = out.shape
    window_size = int(sizes[1])
    windows = batch * -(-height // window_size) * -(-width // window_size)
    return 2 * 2 * windows * window_size**4 * channels


def _linear(
    maps: Sequence[Tensor], weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor,
    rows: int, norm: int, eps: float, activation: int, pool: bool, algorithm: int, **_: Any,
) -> int:  # fmt: skip
    """Where the rows are patches, a row of the product has the channels of four pixels."""
    width = sum(int(x.shape[3]) for x in maps)
    return 2 * len(bias) * (_pixels(out) * width * 4 if rows or pool else _pixels(maps[0]) * width)


def _linear_int8(
    maps: Sequence[Tensor], weight: Tensor, scale: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor,
    rows: int, norm: int, eps: float, activation: int, pool: bool, inverse: float, **_: Any,
) -> int:  # fmt: skip
    return _linear(maps, weight, bias, residual, out, rows, norm, eps, activation, pool, ALGORITHMS["int8"])


def _local_block(x: Tensor, *_: Any, **__: Any) -> int:
    return 2 * x.numel() * (9 + x.shape[3])


def _stem(images: Tensor, *rest: Any, **_: Any) -> int:
    local_map: Tensor = rest[4]
    return 2 * 2 * local_map.numel() * 16 * images.shape[1]


def _gated_concat(local_map: Tensor, *rest: Any, **_: Any) -> int:
    squeeze: Tensor = rest[4]
    expand: Tensor = rest[5]
    return 2 * _pixels(local_map) * 2 * 49 + 2 * 2 * len(local_map) * (squeeze.numel() + expand.numel())


def _mixer(z: Tensor, weight: Tensor, out: Tensor, algorithm: int, **_: Any) -> int:
    return 2 * z.numel() * 9 * (1 if algorithm == ALGORITHMS["depthwise"] else z.shape[3])


def _mixer_int8(z: Tensor, *_: Any, **__: Any) -> int:
    return 2 * z.numel() * 9 * z.shape[3]


def _mlp(u: Tensor, expand: Tensor, expand_bias: Tensor, project: Tensor, project_bias: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _pixels(u) * len(expand_bias) * (u.shape[3] + len(project_bias))


def _mlp_int8(u: Tensor, expand: Tensor, expand_scale: Tensor, expand_bias: Tensor, *rest: Any, **_: Any) -> int:
    project_bias: Tensor = rest[2]
    return 2 * _pixels(u) * len(expand_bias) * (u.shape[3] + len(project_bias))


FORMULAS: dict[str, Callable[..., int]] = {
    "window_attention": _window_attention,
    "linear": _linear,
    "local_block": _local_block,
    "stem": _stem,
    "gated_concat": _gated_concat,
    "mixer": _mixer,
    "mlp": _mlp,
    "linear_int8": _linear_int8,
    "mixer_int8": _mixer_int8,
    "mlp_int8": _mlp_int8,
}
