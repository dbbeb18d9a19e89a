"""The fakes of the library's ops: results without data, for torch.compile, torch.export and the meta device.

Each stands for one schema of csrc/bindings/schemas.cpp. They are registered when the library is loaded, so that an exported
program finds them too. The layout of packed weights is known to the library alone, which says how large they are.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from hifuse_fast.backends.native.algorithms import ALGORITHMS

#: Ops that write to the maps they are given, and return nothing.
OUT = (
    *("window_attention", "linear", "local_block", "stem", "gated_concat", "mixer", "mlp", "mean"),
    *("linear_int8", "local_block_int8", "mixer_int8", "mlp_int8"),
)


def register(lib: ModuleType) -> None:
    """Register the fake of every op of `lib`."""
    packing = _Packing(lib)
    fakes: dict[str, Callable[..., Any]] = {
        **{f"{op}_out": _nothing for op in OUT},
        "window_attention": _window_attention,
        "window_attention_backward": _window_attention_backward,
        "mixer_convolution": lambda z, *_: torch.empty_like(z),
        "mixer_filters_gradient": lambda grad, z: z.new_empty((z.shape[3], z.shape[3], 3, 3)),
        "copy_weight": torch.empty_like,
        "pack_linear": packing.linear,
        "pack_int8": packing.int8,
        "pack_local_block": packing.local_block,
        "pack_stem": packing.stem,
        "pack_gated_concat": packing.gated_concat,
        "pack_mixer": packing.mixer,
        "pack_mixer_int8": packing.mixer_int8,
        "pack_mlp": packing.mlp,
    }
    for op, fake in fakes.items():
        torch.library.register_fake(f"hifuse_fast::{op}", fake)


def _nothing(*_: Any) -> None:
    pass


def _window_attention(qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None, *_: Any, **__: Any) -> Tensor:
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


def _window_attention_backward(
    grad: Tensor, qkv: Tensor, bias_table: Tensor, qkv_bias: Tensor | None,
    num_heads: int, window_size: int, shift_size: int, scale: float, need_map: bool, need_table: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, *rest = qkv.shape
    rows, channels = bias_table.shape[0], qkv.shape[3]
    return (
        qkv.new_empty((batch if need_map else 0, *rest)),
        bias_table.new_empty((rows if need_table else 0, num_heads)),
        bias_table.new_empty(channels if need_map else 0),
    )


class _Packing:
    """The fakes of the ops that pack: `dtype` is that of the maps, `algorithm` a number of `ALGORITHMS`."""

    def __init__(self, lib: ModuleType) -> None:
        self._lib = lib

    def linear(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, algorithm: int) -> tuple[Tensor, ...]:
        return self._matrix(weight, dtype, algorithm), _floats(bias)

    def local_block(
        self, filters: Tensor, filter_bias: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        matrix = self._matrix(weight, dtype, ALGORITHMS["direct"])
        return _floats(filters.flatten(1).T), _floats(filter_bias), matrix, _floats(bias)

    def stem(self, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        matrix = self._matrix(weight.flatten(2).flatten(0, 1), dtype, ALGORITHMS["direct"])
        return matrix, _floats(bias), _floats(scale), _floats(shift)

    def gated_concat(
        self, filters: Tensor, filter_bias: Tensor, squeeze: Tensor, expand: Tensor, scale: Tensor, shift: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(_floats(each) for each in (filters, filter_bias, squeeze, expand.T, scale, shift))

    def mixer(self, weight: Tensor, dtype: torch.dtype, algorithm: int) -> Tensor:
        if algorithm == ALGORITHMS["depthwise"]:
            return _floats(weight.flatten(1).T)
        size = self._lib.packed_filters_size(int(weight.shape[0]), dtype == torch.bfloat16, algorithm)
        return weight.new_empty(size, dtype=dtype)

    def mlp(
        self, expand: Tensor, expand_bias: Tensor, project: Tensor, project_bias: Tensor, dtype: torch.dtype, algorithm: int
    ) -> tuple[Tensor, ...]:
        first = self._matrix(expand, dtype, algorithm)
        second = self._matrix(project, dtype, ALGORITHMS["direct"])
        return first, _floats(expand_bias), second, _floats(project_bias)

    def int8(self, weight: Tensor, block: int) -> Tensor:
        columns, depth = weight.shape
        return weight.new_empty(self._lib.packed_int8_size(int(columns), int(depth), block))

    def mixer_int8(self, weight: Tensor, algorithm: int) -> Tensor:
        return weight.new_empty(self._lib.packed_int8_filters_size(int(weight.shape[0]), algorithm))

    def _matrix(self, weight: Tensor, dtype: torch.dtype, algorithm: int) -> Tensor:
        columns, depth = weight.shape
        return weight.new_empty(self._lib.packed_matrix_size(int(columns), int(depth), algorithm), dtype=dtype)


def _floats(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape, dtype=torch.float32)
