"""The kernels for sm_90a alone, which no table takes yet: parity where a table is said to take them, and what they refuse."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast.backends import tables
from hifuse_fast.backends.cuda import library, sm90
from hifuse_fast.backends.cuda.launch import DTYPES, launch
from hifuse_fast.backends.record import recording
from hifuse_fast.ops import prepare_mixer, prepare_mlp
from hifuse_fast.ops.prepared.base import PreparedOp
from tests.support.emulation import check_runs, stages_used_once
from tests.support.kernels import DEVICE, kernels, uniform
from tests.support.prepared import check_parity, matrix, place

there = hasattr(library.lib, "mlp_sm90") and tables.architecture(DEVICE).startswith("sm_9")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not there, reason="there are no kernels for sm_90a here")]
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
CUDA = kernels("prepare_mlp", "cuda")

# B, H, W, K, hidden, N: several tiles for a block, of which the last one is not full; one row; sizes that fill up no kernel's.
# The rings go round more than twice.
MLPS = [(1, 12, 22, 288, 384, 96), (1, 7, 19, 576, 256, 192), (1, 1, 1, 296, 256, 8), (1, 3, 5, 40, 384, 104)]
MIXERS = [(2, 7, 10, 64), (1, 1, 1, 128), (1, 3, 5, 288)]
# Each kernel and each dtype once; the others are slow.
QUICK = [
    (MLPS[0], torch.bfloat16, True),
    (MLPS[1], torch.float16, False),
    (MIXERS[0], torch.float16),
    (MIXERS[2], torch.bfloat16),
]


def cases(shapes: list[tuple[int, ...]], *options: Any) -> list[Any]:
    """All combinations; those that are not in `QUICK` are slow."""
    return [
        pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow, id=" ".join(map(str, case)))
        for case in itertools.product(shapes, (torch.bfloat16, torch.float16), *options)
    ]


def launched(op: PreparedOp, *maps: Tensor, architecture: str = "sm_90") -> list[str]:
    with recording(architecture) as record:
        op(*maps)
    return [each.entry for each in record.launches]


def weights(depth: int, hidden: int, columns: int) -> dict[str, Tensor]:
    return {
        "expand": matrix("expand", hidden, depth),
        "expand_bias": uniform("expand_bias", hidden),
        "project": matrix("project", columns, hidden),
        "project_bias": uniform("project_bias", columns),
    }


def filters(channels: int) -> Tensor:
    return uniform("weight", channels, channels, 3, 3, scale=(3 / (9 * channels)) ** 0.5)


def mlp(depth: int, hidden: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> PreparedOp:
    return prepare_mlp(**place("cuda", weights(depth, hidden, columns), dtype), dtype=dtype, backend="cuda")


def mixer(channels: int, dtype: torch.dtype = torch.bfloat16) -> PreparedOp:
    return prepare_mixer(place("cuda", filters(channels), dtype), dtype=dtype, backend="cuda")


def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
    found: Tensor = place("cuda", uniform("x", *shape), dtype)
    return found


@pytest.mark.parametrize(("shape", "dtype", "with_residual"), cases(MLPS, (False, True)))
@pytest.mark.parametrize("kernel", CUDA)
def test_parity_of_the_mlp(shape: tuple[int, ...], dtype: torch.dtype, with_residual: bool, kernel: str) -> None:
    residual = uniform("residual", *shape[:3], shape[5]) if with_residual else None
    with sm90.taken():
        assert launched(mlp(*shape[3:], dtype), drawn(dtype, *shape[:4])) == ["mlp_sm90"]
        check_parity(prepare_mlp, weights(*shape[3:]), [uniform("u", *shape[:4])], dtype, kernel, residual=residual)


@pytest.mark.parametrize(("shape", "dtype"), cases(MIXERS))
@pytest.mark.parametrize("kernel", CUDA)
def test_parity_of_the_mixer(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    with sm90.taken():
        assert launched(mixer(shape[3], dtype), drawn(dtype, *shape)) == ["mixer_sm90"]
        check_parity(prepare_mixer, {"weight": filters(shape[3])}, [uniform("z", *shape)], dtype, kernel)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [*MLPS, (1, 13, 10, 288, 1152, 96), (1, 3, 47, 576, 768, 192)], ids=str)
@HALVES
def test_the_mlp_has_the_same_bits_in_all_runs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    op, u, residual = mlp(*shape[3:], dtype), drawn(dtype, *shape[:4]), drawn(dtype, *shape[:3], shape[5])
    with sm90.taken():
        check_runs(lambda: [op(u, residual=residual)])


@pytest.mark.slow
@pytest.mark.parametrize("shape", [*MIXERS, (1, 9, 17, 64), (1, 2, 67, 320)], ids=str)
@HALVES
def test_the_mixer_has_the_same_bits_in_all_runs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    op, z = mixer(shape[3], dtype), drawn(dtype, *shape)
    with sm90.taken():
        check_runs(lambda: [op(z)])


def test_tests_take_each_stage_of_the_rings_round() -> None:
    stages_used_once()  # what other tests have left
    with sm90.taken():
        for *map_shape, hidden, columns in MLPS[:2]:
            mlp(map_shape[3], hidden, columns)(drawn(torch.bfloat16, *map_shape))
        mixer(64)(drawn(torch.bfloat16, 2, 7, 10, 64))
    assert not stages_used_once()


@HALVES
def test_batch_0(dtype: torch.dtype) -> None:
    with sm90.taken():
        empty = drawn(dtype, 0, 3, 5, 64)
        assert sm90.mlp(empty, *place("cuda", list(weights(64, 128, 8).values()), dtype), None, empty[..., :8]).numel() == 0
        assert sm90.mixer(empty, place("cuda", filters(64), dtype).view(64, 9, 64), empty.clone()).shape == empty.shape


def test_rows_with_strides_are_refused_by_the_op_and_right_in_the_launcher() -> None:
    u, w = drawn(torch.bfloat16, 1, 3, 5, 128), place("cuda", weights(64, 128, 8), torch.bfloat16)
    with sm90.taken():
        op = mlp(64, 128, 8)
        with pytest.raises(ValueError, match="u must be contiguous"):
            op(u[..., :64])
        with pytest.raises(ValueError, match="z must be contiguous"):
            mixer(64)(u[..., :64])
        out = torch.empty(1, 3, 5, 8, dtype=u.dtype, device=u.device)
        assert torch.equal(sm90.mlp(u[..., :64], *w.values(), None, out), op(u[..., :64].contiguous()))
        taps = mixer(64).weight
        apart = sm90.mixer(u[..., :64], taps, torch.empty_like(u[..., :64], memory_format=torch.contiguous_format))
        assert torch.equal(apart, mixer(64)(u[..., :64].contiguous()))


def test_memory_that_begins_anywhere() -> None:
    """An odd address of u, of the residual and of the result."""
    with sm90.taken():
        op = mlp(64, 128, 8)
        u, residual = (drawn(torch.bfloat16, 1, 3, 5, c) for c in (64, 8))
        shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in (u, residual, residual)]
        assert torch.equal(op(shifted[0], residual=shifted[1], out=shifted[2]), op(u, residual=residual))
        z = shifted[0]
        assert torch.equal(mixer(64)(z, out=torch.empty(z.numel() + 1, dtype=z.dtype, device=z.device)[1:].view(z.shape)),
                           mixer(64)(u))  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_image_does_not_change_its_neighbours(value: float) -> None:
    with sm90.taken():
        for op, channels in ((mlp(64, 128, 8), 64), (mixer(64), 64)):
            x = drawn(torch.bfloat16, 3, 5, 7, channels)
            spoilt = x.clone()
            spoilt[1] = value
            out, expected = op(spoilt), op(x)
            assert torch.equal(out[0], expected[0])
            assert torch.equal(out[2], expected[2])
            assert torch.equal(op(x[1:2])[0], expected[1])  # whatever block computes it


def test_no_table_takes_them_before_a_gpu_has_run_them() -> None:
    for architecture in tables.architectures():
        for kernel in sm90.KERNELS:
            entries = tables.table(architecture).get(kernel, {})
            assert all(entry["rows"] == 0 for entry in entries.values() if entry["origin"] == "predicted")
            assert bool(entries) == (architecture == "sm_90")


def test_where_they_are_taken() -> None:
    """On sm_90 in 16 bits, from as many rows on as the table says, at sizes that they are compiled for."""
    other = ["products", "products"]
    op, u = mlp(64, 128, 8), drawn(torch.bfloat16, 1, 2, 3, 64)
    assert launched(op, u) == other
    with sm90.taken(6):
        assert launched(op, u) == ["mlp_sm90"]
        for architecture in ("sm_80", "sm_89", "sm_100", "sm_120"):
            assert launched(op, u, architecture=architecture) == other
            assert launched(mixer(64), u, architecture=architecture) == ["products"]
    with sm90.taken(7):
        assert launched(op, u) == other
        assert launched(mixer(64), u) == ["products"]
    with sm90.taken():
        for sizes in ((60, 128, 8), (64, 120, 8), (64, 128, 12), (584, 128, 8), (64, 128, 200)):
            assert launched(mlp(*sizes), drawn(torch.bfloat16, 1, 2, 3, sizes[0])) == other, sizes
        assert launched(mixer(32), drawn(torch.bfloat16, 1, 2, 3, 32)) == ["products"]
        assert launched(mlp(64, 128, 8, torch.float32), u.float()) == other


def test_a_library_without_them_takes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was built for other architectures."""
    op, u = mlp(64, 128, 8), drawn(torch.bfloat16, 1, 2, 3, 64)
    with sm90.taken(), monkeypatch.context() as patch:
        patch.setattr(library, "lib", object())
        assert launched(op, u) == ["products", "products"]


BAD: list[tuple[str, list[int], str]] = [
    ("mlp_sm90", [3, 60, 128, 8], "the depth must be a multiple of 8 from 8 to 576"),
    ("mlp_sm90", [3, 584, 128, 8], "the depth must be"),
    ("mlp_sm90", [3, 64, 120, 8], "the hidden units must be a multiple of 128"),
    ("mlp_sm90", [3, 64, 128, 4], "the columns must be a multiple of 8 from 8 to 192"),
    ("mlp_sm90", [2**31 - 1, 64, 128, 8], r"the maps have more than 2\^31 pixels"),
    ("mixer_sm90", [1, 2, 3, 96], "the channels must be 288 or a multiple of 64"),
    ("mixer_sm90", [2**20, 2**10, 2**10, 64], r"the maps have more than 2\^31 pixels"),
    ("mixer_sm90", [7, 2**14, 2**14, 2**17], r"the maps have more than 2\^30 tiles"),
]


@pytest.mark.parametrize(("entry", "sizes", "message"), BAD, ids=[f"{row[0]} {row[1]}" for row in BAD])
def test_the_library_says_what_it_does_not_serve(entry: str, sizes: list[int], message: str) -> None:
    x = torch.zeros(64, dtype=torch.bfloat16, device=DEVICE)
    reads: list[Any] = [x] * (5 if entry == "mlp_sm90" else 2) + [None] * (entry == "mlp_sm90")
    with pytest.raises(RuntimeError, match=message):
        launch(entry, [DTYPES[x.dtype], *sizes, 1], (), reads, (x.clone(),))
    small = [3, 64, 128, 8] if entry == "mlp_sm90" else [1, 2, 3, 64]
    with pytest.raises(RuntimeError, match="are for bfloat16 and float16"):
        launch(entry, [DTYPES[torch.float32], *small, 1], (), reads, (x.clone(),))
