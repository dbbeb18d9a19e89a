"""The prepared mixer: the reference against its definition, and every kernel and algorithm against the reference."""

from __future__ import annotations

import importlib
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import BackendError
from hifuse_fast.backends import tables
from hifuse_fast.backends.native import library
from hifuse_fast.backends.record import recording
from hifuse_fast.ops import prepare_mixer
from hifuse_fast.ops.prepared.mixer.bounds import bound
from hifuse_fast.testing import assert_within_rule
from tests.support.kernels import kernels, uniform
from tests.support.prepared import DTYPES, check_determinism, check_images_apart, check_parity, matrix, place

pytestmark = pytest.mark.gpu
KERNELS = kernels("prepare_mixer", "native", "triton", "cuda")
SHAPES = [(2, 7, 7, 96), (1, 5, 3, 13), (1, 1, 1, 40), (2, 1, 9, 33), (1, 18, 14, 8), (1, 2, 2, 1), (1, 6, 10, 160)]
# These share their filters in registers.
FOUR_TILES = [(1, 7, 7, 96), (1, 6, 5, 40), (1, 8, 8, 16), (2, 3, 8, 33), (1, 4, 13, 8), (4, 1, 2, 72)]
DEPTHWISE_SHAPES = [(2, 7, 7, 36), *SHAPES[1:6]]  # PyTorch's float64 takes long for many channels
ALGORITHMS = [(dtype, algorithm) for dtype in DTYPES for algorithm in ("direct", "winograd2", "winograd4")]


def has(backend: str, algorithm: str) -> bool:
    """Whether the backend has the algorithm; the reference takes any name for its own."""
    others = {"triton": ("direct", "winograd2"), "cuda": ("direct",)}
    return algorithm in others.get(backend, (algorithm,))


def weight(channels: int, depthwise: bool) -> Tensor:
    return matrix("weight", channels, 1 if depthwise else channels, 3, 3)


@pytest.mark.parametrize(("shape", "depthwise"), [(s, False) for s in SHAPES] + [(s, True) for s in DEPTHWISE_SHAPES], ids=str)
def test_reference_is_the_definition(shape: tuple[int, ...], depthwise: bool) -> None:
    batch, height, width, channels = shape
    w, z = weight(channels, depthwise), uniform("z", *shape)
    padded = z.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = z
    y = torch.zeros_like(z)
    for r in range(3):
        for c in range(3):
            at = padded[:, r : r + height, c : c + width]
            y += at * w[:, 0, r, c] if depthwise else torch.einsum("bhwk,nk->bhwn", at, w[:, :, r, c])
    expected = z + y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    torch.testing.assert_close(prepare_mixer(w, dtype=torch.float64, backend="reference")(z), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "algorithm"), ALGORITHMS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parity(shape: tuple[int, ...], dtype: torch.dtype, algorithm: str, kernel: str) -> None:
    rule = partial(assert_within_rule, bound=bound(algorithm, dtype))
    if not has(kernel, algorithm):
        pytest.skip("it has no such algorithm")
    if kernel == "triton" and dtype == torch.bfloat16:
        rule = assert_within_rule
    if kernel == "triton" and dtype == torch.float32:  # the vendor's: channels last, oneDNN is a third as exact
        rule = partial(assert_within_rule, bound=bound("winograd2", dtype))
    check_parity(
        prepare_mixer,
        {"weight": weight(shape[3], False)},
        [uniform("z", *shape)],
        dtype,
        kernel,
        options={"algorithm": algorithm},
        rule=rule,
    )


def prepared(
    kernel: str, channels: int, dtype: torch.dtype = torch.float32, *, depthwise: bool = False, algorithm: str = "auto"
) -> Any:
    return prepare_mixer(place(kernel, weight(channels, depthwise), dtype), algorithm=algorithm, dtype=dtype, backend=kernel)


@pytest.fixture
def at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any width transform their filters at the call, as wide ones do."""
    monkeypatch.setattr(importlib.import_module("hifuse_fast.ops.prepared.mixer.native"), "WIDE", 1)


@pytest.mark.usefixtures("at_the_call")
@pytest.mark.parametrize("shape", [*SHAPES, *FOUR_TILES, (9, 13, 11, 40)], ids=str)  # the last one: several blocks of tiles
@pytest.mark.parametrize("kernel", kernels("prepare_mixer", "native"))
def test_parity_with_filters_transformed_at_the_call(shape: tuple[int, ...], kernel: str) -> None:
    rule = partial(assert_within_rule, bound=bound("winograd4_at_call", torch.float32))
    check_parity(prepare_mixer, {"weight": weight(shape[3], False)}, [uniform("z", *shape)], torch.float32, kernel, rule=rule)


@pytest.mark.usefixtures("at_the_call")
@pytest.mark.parametrize("kernel", kernels("prepare_mixer", "native"))
def test_filters_transformed_at_the_call(kernel: str) -> None:
    op = prepared(kernel, 96)
    assert op.options["algorithm"] == "winograd4_at_call"
    assert op.weight.numel() == 9 * 96 * 96  # not 36
    assert op(torch.empty(0, 3, 5, 96)).shape == (0, 3, 5, 96)
    check_determinism(op, place(kernel, uniform("z", 5, 19, 23, 96), torch.float32))
    check_determinism(op, place(kernel, uniform("z", 1, 7, 7, 96), torch.float32))


@pytest.mark.parametrize("shape", DEPTHWISE_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_depthwise_parity(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    z = uniform("z", *shape)
    check_parity(prepare_mixer, {"weight": weight(shape[3], True)}, [z], dtype, kernel, rule=assert_within_rule)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_auto_keeps_the_largest_bound(dtype: torch.dtype, kernel: str) -> None:
    rule = partial(assert_within_rule, bound=bound("winograd4", dtype))
    check_parity(prepare_mixer, {"weight": weight(48, False)}, [uniform("z", 1, 9, 11, 48)], dtype, kernel, rule=rule)


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    for dtype, algorithm in ALGORITHMS:
        if not has(backend, algorithm):
            continue
        none = place(backend, torch.empty(0, 3, 5, 8), dtype)
        assert prepared(backend, 8, dtype, algorithm=algorithm)(none).shape == (0, 3, 5, 8)
    assert prepared(backend, 8, depthwise=True)(place(backend, torch.empty(0, 3, 5, 8))).numel() == 0


@pytest.mark.usefixtures("at_the_call")
@pytest.mark.parametrize("kernel", kernels("prepare_mixer", "native"))
def test_wide_layers_of_bfloat16_keep_small_filters(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "has_tiles", lambda: False)
    assert prepared(kernel, 96, torch.bfloat16).weight.numel() == 16 * 96 * 96  # not 49


@pytest.mark.parametrize("channels", [40, 96])
@pytest.mark.parametrize("kernel", kernels("prepare_mixer", "native"))
def test_bfloat16_is_direct_where_products_are_made_by_tiles(
    kernel: str, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_tiles, algorithm in ((True, "direct"), (False, "winograd4")):
        monkeypatch.setattr(library, "has_tiles", lambda has_tiles=has_tiles: has_tiles)
        assert prepared(kernel, channels, torch.bfloat16).options["algorithm"] == algorithm
        assert prepared(kernel, channels, torch.float32).options["algorithm"] == "winograd4"


# An image in several bands, and one in bands of a line each; several images that are multiplied together, odd ones left.
BANDS = [(1, 75, 70, 33), (2, 5, 2300, 40), (7, 5, 6, 500)]


@pytest.mark.parametrize("shape", BANDS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", kernels("prepare_mixer", "native"))
def test_parity_of_bands(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    parts = {"weight": weight(shape[3], False)}
    check_parity(prepare_mixer, parts, [uniform("z", *shape)], dtype, kernel, options={"algorithm": "direct"})


@pytest.mark.parametrize(("dtype", "algorithm"), ALGORITHMS, ids=str)
@pytest.mark.parametrize("kernel", kernels("prepare_mixer", "native"))
def test_images_are_apart(dtype: torch.dtype, algorithm: str, kernel: str) -> None:
    op = prepared(kernel, 40, dtype, algorithm=algorithm)
    check_images_apart(op, place(kernel, uniform("z", 4, 5, 7, 40), dtype))


@pytest.mark.parametrize(("dtype", "algorithm"), ALGORITHMS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_whatever_the_threads(dtype: torch.dtype, algorithm: str, kernel: str) -> None:
    if not has(kernel, algorithm):
        pytest.skip("it has no such algorithm")
    op = prepared(kernel, 40, dtype, algorithm=algorithm)
    check_determinism(op, place(kernel, uniform("z", 2, 19, 23, 40), dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_an_image_does_not_change_its_neighbours(dtype: torch.dtype, backend: str) -> None:
    """Tiles that reach over the end of an image read zeros, not the next one."""
    op, z = prepared(backend, 8, dtype), place(backend, uniform("z", 3, 5, 7, 8), dtype)
    poisoned = z.clone()
    poisoned[1] = math.nan
    out, expected = op(poisoned), op(z)
    assert out[1].isnan().all()
    torch.testing.assert_close(out[::2], expected[::2])


TRITON = kernels("prepare_mixer", "triton")


def by_size(pixels: int, scratch: int = 1) -> Any:
    """As if the table said so."""
    return tables.override("mixer_winograd", {"pixels": pixels, "scratch": scratch})


def launched(op: Any, z: Tensor) -> set[str]:
    with recording("sm_90") as record:
        op(z)
    return {each.kernel.fn.__name__ for each in record.launches}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kernel", TRITON)
def test_the_table_says_from_how_many_pixels_on_winograd_is_taken(dtype: torch.dtype, kernel: str) -> None:
    few, many = (place(kernel, torch.ones(1, 3, side, 8), dtype) for side in (6, 7))
    both = {"_winograd_input_kernel", "_winograd_output_kernel"}
    with by_size(21):
        op = prepared(kernel, 8, dtype)
        assert op.options["algorithm"] == "direct_or_winograd2"
        assert set(op.packed()) == {"weight", "filters"}
        assert launched(op, few) == {"_finish_kernel"}
        assert launched(op, many) == both
        assert launched(prepared(kernel, 8, dtype, algorithm="winograd2"), few) == both
        for other in (prepared(kernel, 8, dtype, algorithm="direct"), prepared(kernel, 8, dtype, depthwise=True)):
            assert set(other.packed()) == {"weight"}
            assert not launched(other, many) & both
        assert prepared(kernel, 8, torch.float16).options["algorithm"] == "direct"  # where it would overflow
    assert launched(op, many) == {"_finish_kernel"}  # packed for both, on a GPU whose table says never
    assert prepared(kernel, 8, dtype).options["algorithm"] == "direct"


@pytest.mark.parametrize("architecture", tables.architectures())
def test_winograd_is_off_where_nothing_was_measured(architecture: str) -> None:
    entries = tables.table(architecture)["mixer_winograd"]
    assert all(entry["pixels"] == 0 for entry in entries.values() if entry["origin"] == "predicted")


@pytest.mark.parametrize("most", [2**31 - 1, 40], ids=str)  # pixels that are counted at a time: three images, or one by one
@pytest.mark.parametrize("kernel", TRITON)
def test_winograd_in_parts(most: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 tiles, which begin and end within an image."""
    monkeypatch.setattr("hifuse_fast.ops.prepared.mixer.triton.MOST_PIXELS", most)
    z, options = uniform("z", 3, 5, 7, 9), {"algorithm": "winograd2"}
    with by_size(0):
        check_parity(prepare_mixer, {"weight": weight(9, False)}, [z], torch.bfloat16, kernel, options=options)


@pytest.mark.parametrize("kernel", TRITON)
def test_winograds_images_are_apart(kernel: str) -> None:
    op, z = prepared(kernel, 8, algorithm="winograd2"), place(kernel, uniform("z", 3, 5, 7, 8), torch.float32)
    poisoned = z.clone()
    poisoned[1] = math.nan
    out, expected = op(poisoned), op(z)
    assert out[1].isnan().all()
    torch.testing.assert_close(out[::2], expected[::2])


@pytest.mark.parametrize("kernel", TRITON)
def test_filters_are_transformed_before_they_are_rounded(kernel: str) -> None:
    w = weight(3, False)
    corner = w.float().sum((2, 3)) / 4  # at the point 1 along both axes
    filters = prepare_mixer(w, algorithm="winograd2", dtype=torch.bfloat16, backend=kernel).filters
    assert torch.equal(filters[5], corner.to(filters))
    assert torch.equal(filters[3], w[..., 0, 2].float().to(filters))


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "direct_or_winograd2"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_the_layout_is_that_of_what_triton_packs(depthwise: bool, algorithm: str) -> None:
    module = importlib.import_module("hifuse_fast.ops.prepared.mixer.triton")
    if depthwise and algorithm != "direct":
        return
    w = weight(6, depthwise)
    packed = module.Mixer.pack({"weight": w}, torch.bfloat16, algorithm=algorithm)
    layout = module.Mixer.layout({"weight": tuple(w.shape)}, torch.bfloat16, algorithm=algorithm)
    assert {name: (tuple(x.shape), x.dtype) for name, x in packed.items()} == layout


BAD = [
    ({"weight": torch.randn(8, 8, 3)}, ValueError, r"weight must be \[C, C, 3, 3\], got \[8, 8, 3\]"),
    ({"weight": torch.randn(8, 7, 3, 3)}, ValueError, r"weight must be \[C, C, 3, 3\]"),
    ({"weight": torch.randn(8, 8, 5, 5)}, ValueError, r"weight must be \[C, C, 3, 3\] = \[8, 8, 3, 3\], got \[8, 8, 5, 5\]"),
    ({"weight": torch.randn(8, 1, 3, 1)}, ValueError, r"weight must be \[C, 1, 3, 3\]"),
    ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
    ({"algorithm": "fft"}, ValueError, "algorithm must be one of auto, direct, winograd2, winograd4, got 'fft'"),
    (
        {"backend": "triton", "algorithm": "winograd4"},
        BackendError,
        r"'triton' cannot serve prepare_mixer: its convolutions are .*F\(2x2, 3x3\).*, not 'winograd4'",
    ),
    ({"dtype": torch.int8}, TypeError, "dtype must be one of"),
    ({"backend": "native", "dtype": torch.float64}, BackendError, "'native' cannot serve prepare_mixer"),
    ({"backend": "native", "dtype": torch.float16}, BackendError, "'native' cannot serve prepare_mixer"),
    (
        {"backend": "triton", "algorithm": "winograd2", "dtype": torch.float16},
        BackendError,
        "'triton' cannot serve prepare_mixer: Winograd's algorithm adds four values",
    ),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=[f"{row[0]!s:.30}" for row in BAD])
def test_bad_preparation_is_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = place(arguments.get("backend", "native"), torch.randn(8, 8, 3, 3))
    with pytest.raises(error, match=message):
        prepare_mixer(**{"weight": given, "dtype": torch.float32, **arguments})


Z = torch.randn(1, 3, 5, 8)
BAD_CALLS = [
    ([None], "z must be a torch.Tensor, got NoneType"),
    ([Z[0]], r"z must be \[B, H, W, 8\] with H and W at least 1, got \[3, 5, 8\]"),
    ([torch.randn(1, 3, 5, 9)], r"z must be \[B, H, W, 8\]"),
    ([Z.bfloat16()], "z must be torch.float32 as the op was prepared for, got torch.bfloat16"),
    ([Z.transpose(1, 2)], "z must be contiguous"),
    ([Z, Z], "out must not share memory with z"),
    ([Z, torch.empty(2, 3, 5, 8)], r"out must be \[1, 3, 5, 8\]"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_CALLS, ids=[row[1][:40] for row in BAD_CALLS])
@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_bad_calls_are_refused(arguments: list[Any], message: str, backend: str) -> None:
    op = prepared(backend, 8)
    with pytest.raises((TypeError, ValueError), match=message):
        op(*place(backend, arguments))
