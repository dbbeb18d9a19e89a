"""The calls that meet the mistakes: small ones in bfloat16, with shapes in which each part of a kernel has work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

# The package is imported by the calls: it takes the library with the mistake when it is imported first.

Run = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Call:
    """`sources` are the files of csrc/cuda that it runs; `run` draws the same numbers each time and returns all results."""

    sources: tuple[str, ...]
    run: Run
    multiprocessors: int = 1


def _draws() -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(torch.bfloat16)


def _with_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _attention(window: int, shift: int, head_dim: int, shape: tuple[int, int, int], backward: bool = False) -> list[Tensor]:
    from hifuse_fast.ops import window_attention

    draw = _draws()
    tensors = [draw(*shape, 3 * head_dim), draw((2 * window - 1) ** 2, 1).float(), draw(3 * head_dim)]

    def run(qkv: Tensor, table: Tensor, bias: Tensor) -> Tensor:
        return window_attention(qkv, table, qkv_bias=bias, num_heads=1, window_size=window, shift_size=shift, backend="cuda")

    return _with_gradients(run, tensors) if backward else [run(*tensors)]


def _product(shape: tuple[int, int, int], columns: int, depth: int) -> list[Tensor]:
    from hifuse_fast.backends.cuda import product

    draw = _draws()
    x, weight, bias, residual = draw(*shape, depth), draw(columns, depth), draw(columns), draw(*shape, columns)
    out = torch.empty_like(residual)
    return [product.product([x], weight, bias, out, norm="row", eps=1e-5, activation="gelu", residual=residual)]


def _products(shape: tuple[int, int, int], columns: int, depth: int) -> list[Tensor]:
    from hifuse_fast.backends.cuda import product

    draw = _draws()
    x, weight, bias, residual = draw(*shape, depth), draw(columns, depth), draw(columns), draw(*shape, columns)
    plain = product.Product([x], weight, bias, torch.empty_like(residual), norm="row", activation="gelu", residual=residual)
    patches = product.Product(
        [x], draw(columns, 4 * depth), None, draw(shape[0], *[n // 2 for n in shape[1:]], columns), "patches"
    )
    pooled = product.Product([x], weight, bias, torch.empty_like(patches.out), activation="relu", pool=True)
    return product.products([plain, patches, pooled])


def _local_block(shape: tuple[int, int, int, int]) -> list[Tensor]:
    from hifuse_fast.ops import prepare_local_block

    draw, c = _draws(), shape[3]
    block = prepare_local_block(draw(c, 3, 3), draw(c), draw(c, c), draw(c), eps=1e-3, dtype=torch.bfloat16, backend="cuda")
    return [block(draw(*shape))]


def _global_block(shape: tuple[int, int, int], heads: int, window: int, shift: int) -> list[Tensor]:
    from hifuse_fast.inference.buffers import FreshMaps
    from hifuse_fast.ops import prepare_linear, prepare_window_attention
    from hifuse_fast.ops.prepared.global_block import prepare_global_block

    draw, c = _draws(), heads * 8
    made: dict[str, Any] = {"dtype": torch.bfloat16, "backend": "cuda"}
    attention: dict[str, Any] = {"head_dim": 8, "num_heads": heads, "window_size": window, "shift_size": shift}
    block = prepare_global_block(
        prepare_linear(draw(3 * c, c), draw(3 * c), norm="row", **made),
        prepare_window_attention(draw((2 * window - 1) ** 2, heads), draw(3 * c), **attention, **made),
        prepare_linear(draw(c, c), draw(c), activation="gelu", **made),
    )
    x = draw(*shape, c)
    return [block(x, FreshMaps(x.dtype, x.device))]


def _fuse_path(shape: tuple[int, int, int], c: int) -> list[Tensor]:
    from hifuse_fast.inference.buffers import FreshMaps
    from hifuse_fast.ops import prepare_linear
    from hifuse_fast.ops.prepared.fuse_path import prepare_fuse_path

    draw = _draws()
    made: dict[str, Any] = {"dtype": torch.bfloat16, "backend": "cuda"}
    path = prepare_fuse_path(
        local_linear=prepare_linear(draw(c, c), draw(c), **made),
        global_linear=prepare_linear(draw(c, c), draw(c), **made),
        up=None,
        fuse=prepare_linear(draw(c, 2 * c), draw(c), norm="row", eps=1e-3, activation="gelu", **made),
    )
    maps = draw(*shape, c), draw(*shape, c)
    return [path(*maps, None, FreshMaps(torch.bfloat16, maps[0].device))[0]]


def _function(op: str, shapes: Sequence[tuple[int, ...]], **options: Any) -> list[Tensor]:
    from hifuse_fast import ops

    draw = _draws()
    return _with_gradients(partial(getattr(ops, op), **options, backend="cuda"), [draw(*shape) for shape in shapes])


def _concat_norm(maps: Sequence[int], channels: int) -> list[Tensor]:
    from hifuse_fast import ops

    draw, shape = _draws(), (*maps, channels)
    tensors = [draw(*shape), draw(*shape), draw(*shape), draw(*shape[:3], 1), draw(shape[0], 1, 1, channels)]
    tensors += [draw(3 * channels), draw(3 * channels)]

    def run(a: Tensor, b: Tensor, c: Tensor, pixel: Tensor, channel: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.concat_norm(a, b, c, weight=weight, bias=bias, gates=[pixel, channel, None], backend="cuda")

    return _with_gradients(run, tensors)


def _gates(shape: tuple[int, int, int, int], squeezed: int) -> list[Tensor]:
    from hifuse_fast import ops

    draw, c = _draws(), shape[3]
    op = ops.prepare_gated_concat(
        draw(2, 7, 7), draw(1), draw(squeezed, c), draw(c, squeezed), draw(3 * c), draw(3 * c), dtype=torch.bfloat16,
        backend="cuda",
    )  # fmt: skip
    return [op(*(draw(*shape) for _ in range(3)))]


def _mlp_sm90(shape: tuple[int, int, int], depth: int, hidden: int, columns: int) -> list[Tensor]:
    from hifuse_fast.backends.cuda import sm90
    from hifuse_fast.ops import prepare_mlp

    draw = _draws()
    made: dict[str, Any] = {"dtype": torch.bfloat16, "backend": "cuda"}
    op = prepare_mlp(draw(hidden, depth), draw(hidden), draw(columns, hidden), draw(columns), **made)
    with sm90.taken():
        return [op(draw(*shape, depth), residual=draw(*shape, columns))]


def _mixer_sm90(shape: tuple[int, int, int], channels: int) -> list[Tensor]:
    from hifuse_fast.backends.cuda import sm90
    from hifuse_fast.ops import prepare_mixer

    draw = _draws()
    op = prepare_mixer(draw(channels, channels, 3, 3) / 16, dtype=torch.bfloat16, backend="cuda")
    with sm90.taken():
        return [op(draw(*shape, channels))]


def _ends(images: tuple[int, int, int, int], shape: tuple[int, int, int, int]) -> list[Tensor]:
    from hifuse_fast.backends.cuda import ends

    draw = _draws()
    return [ends.stem_patches(draw(*images), 3, 3, torch.bfloat16), ends.mean(draw(*shape))]


_FORWARD, _BACKWARD, _PARTS = "window_attention_forward_bf16.cu", "window_attention_backward_bf16.cu", "sum_of_parts.cu"
_ATTENTION = ("window_attention.cu", _FORWARD)
_GRADIENTS = (*_ATTENTION, _BACKWARD, _PARTS)
# A block of threads has four windows or more.
_WHOLE, _BLOCKS = (7, 3, 32, (3, 12, 19)), (9, 4, 8, (2, 11, 20))
_CONVOLVED = (1000, 1, 3, 3), (1000,), (1000,), (1000,)

CALLS = {
    "whole": Call(_ATTENTION, partial(_attention, *_WHOLE)),
    "whole, backward": Call(_GRADIENTS, partial(_attention, *_WHOLE, backward=True)),
    "blocks": Call(_ATTENTION, partial(_attention, *_BLOCKS)),
    "blocks, backward": Call(_GRADIENTS, partial(_attention, *_BLOCKS, backward=True)),
    # The gradients of parameters have more parts than SumOfParts has warps, and the last warp that has any has fewer.
    "many parts, backward": Call(_GRADIENTS, partial(_attention, 2, 1, 8, (1, 6, 22), backward=True), multiprocessors=16),
    # 132 rows are two tiles, 104 columns two; 232 channels are eight steps, of which the last one is not full.
    "tiles": Call(("product_bf16.cu",), partial(_product, (1, 11, 12), 104, 232)),
    "parts": Call(("product_bf16.cu",), partial(_product, (1, 3, 5), 24, 552), multiprocessors=1000),
    # The first and the last have two tiles and parts, the second one tile and more parts; all of them have blocks of their own.
    "several products": Call(("product_bf16.cu",), partial(_products, (1, 12, 12), 24, 552), multiprocessors=1000),
    # Patches with pixels beyond the images, and one of none; more pixels than rows of threads, channels of two slices.
    "ends": Call(("ends.cu",), partial(_ends, (2, 3, 7, 9), (2, 5, 9, 40))),
    # Two tiles, each with pixels beyond the map; channels that are fewer than the kernel's.
    "local block": Call(("local_block.cu",), partial(_local_block, (1, 7, 9, 88))),
    # Three windows, two of them with padded tokens, and a seam along each axis.
    "global block": Call(("global_block.cu",), partial(_global_block, (1, 5, 17), 2, 6, 2)),
    # Two tiles, of which the last is not full; channels that are fewer than the kernel's.
    "fuse path": Call(("fuse_path.cu",), partial(_fuse_path, (1, 7, 10), 88)),
    # Three tiles of rows for two blocks, of which the last one is not full; columns that are fewer than the kernel's.
    "mlp of sm_90a": Call(("mlp_sm90.cu",), partial(_mlp_sm90, (1, 12, 45), 288, 128, 88), multiprocessors=2),
    "mixer of sm_90a": Call(("mixer_sm90.cu",), partial(_mixer_sm90, (3, 9, 11), 64), multiprocessors=2),
    # Results of two tiles.
    "wide mixer of sm_90a": Call(("mixer_sm90.cu",), partial(_mixer_sm90, (1, 1, 3), 320)),
    # Rows of 1000 numbers are those of two warps.
    "layer norm": Call(("layer_norm.cu", _PARTS), partial(_function, "layer_norm", [(1, 3, 5, 1000), (1000,), (1000,)])),
    # Rows of which none is of two warps, which would wait for each other.
    "narrow layer norm": Call(("layer_norm.cu", _PARTS), partial(_function, "layer_norm", [(1, 3, 5, 96), (96,), (96,)])),
    "concat norm": Call(("concat_norm.cu", _PARTS), partial(_concat_norm, (2, 3, 5), 344), multiprocessors=16),
    "depthwise norm": Call(("depthwise_norm.cu", _PARTS), partial(_function, "depthwise_norm", [(1, 3, 5, 1000), *_CONVOLVED])),
    "depthwise shares": Call(
        ("depthwise_norm.cu", _PARTS),
        partial(_function, "depthwise_norm", [(2, 9, 9, 40), (40, 1, 3, 3), (40,), (40,), (40,)]),
        multiprocessors=16,
    ),
    "batch norm": Call(
        ("batch_norm.cu", _PARTS),
        partial(_function, "batch_norm", [(2, 6, 14, 40), (40,), (40,)], training=True, activation="relu", pool=True),
        multiprocessors=16,
    ),
    "largest pixel": Call(("max_mean.cu",), partial(_function, "max_mean", [(2, 19, 20, 40)], over="pixels")),
    "largest channel": Call(("max_mean.cu",), partial(_function, "max_mean", [(1, 3, 5, 300)], over="channels")),
    "gates": Call(("gated_concat.cu",), partial(_gates, (2, 19, 17, 40), 3)),
    "depthwise mixer": Call(
        ("pointwise.cu", "depthwise_norm.cu", _PARTS), partial(_function, "mixer", [(1, 5, 7, 24), (24, 1, 3, 3)])
    ),
}
