"""The packed layout of the compiled library against a second description of it; the schema and the fake of every op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.native import library
from hifuse_fast.backends.native.algorithms import ALGORITHMS
from tests.support.prepared import DTYPES, matrix, uniform

pytestmark = pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))
op: Any = torch.ops.hifuse_fast
DIRECT, STRASSEN = ALGORITHMS["direct"], ALGORITHMS["strassen"]


def panels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """[N, K] in panels of 32 columns, [N / 32][K][32]; bfloat16 pairs neighbours of the depth, [N / 32][K / 2][32][2]."""
    columns, depth = weight.shape
    step = 1 if dtype == torch.float32 else 2
    whole = F.pad(weight.to(dtype), (0, -depth % 32, 0, -columns % 32))
    return whole.unflatten(0, (-1, 32)).unflatten(2, (-1, step)).transpose(1, 2).flatten()


def factors(weight: Tensor) -> Tensor:
    """The seven factors of each pair of panels, as the table of csrc/cpu/strassen.h has them."""
    packed = []
    for pair in F.pad(weight.float(), (0, 0, 0, -len(weight) % 64)).split(64):
        (b11, b21), (b12, b22) = pair[:32].chunk(2, 1), pair[32:].chunk(2, 1)
        seven = (b11 + b22, b21 - b11, b22, b21 + b22, b12 - b22, b11, b11 + b12)
        packed += [panels(factor, torch.float32) for factor in seven]
    return torch.cat(packed)


@pytest.mark.parametrize("shape", [(64, 64), (33, 45), (1, 1), (70, 96)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_matrix_lies_in_panels(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight, bias = matrix("weight", *shape), uniform("bias", shape[0])
    packed, floats = op.pack_linear(weight.t().contiguous().t(), bias, dtype, DIRECT)  # any strides, float64
    assert torch.equal(packed, panels(weight, dtype))
    assert torch.equal(floats, bias.float())


def test_strassen_has_the_factors_of_pairs_of_panels() -> None:
    for shape in ((64, 32), (128, 416)):
        weight = matrix("weight", *shape)
        assert torch.equal(op.pack_linear(weight, weight[:, 0], torch.float32, STRASSEN)[0], factors(weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mlp_has_its_second_weight_in_blocks(dtype: torch.dtype) -> None:
    expand, project = matrix("expand", 450, 32), matrix("project", 33, 450)
    algorithm = STRASSEN if dtype == torch.float32 else DIRECT
    packed = op.pack_mlp(expand, expand[:, 0], project, project[:, 0], dtype, algorithm)
    assert torch.equal(packed[0], factors(expand) if algorithm == STRASSEN else panels(expand, dtype))
    assert torch.equal(packed[2], torch.cat([panels(block, dtype) for block in project.split(192, 1)]))


@pytest.mark.parametrize("shape", [(64, 64), (33, 45), (1, 1)], ids=str)
def test_bytes_lie_in_fours_and_their_sums_behind_a_panel(shape: tuple[int, int]) -> None:
    weight = torch.randint(-127, 128, shape, dtype=torch.int8)
    whole = F.pad(weight, (0, -shape[1] % 32, 0, -shape[0] % 32)).unflatten(0, (-1, 32))
    fours = whole.unflatten(2, (-1, 4)).transpose(1, 2).flatten(1)
    sums = (-128 * whole.int().sum(2, dtype=torch.int32)).contiguous().view(torch.int8)
    assert torch.equal(op.pack_int8(weight, 0), torch.cat([fours, sums], 1).flatten())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filters_lie_tap_by_tap(dtype: torch.dtype) -> None:
    weight = matrix("weight", 40, 40, 3, 3)
    taps = [panels(weight[:, :, i // 3, i % 3], dtype).view(2, 2, 32 * 32) for i in range(9)]  # [panel][chunk of the depth]
    assert torch.equal(op.pack_mixer(weight, dtype, DIRECT), torch.stack(taps, 2).flatten())
    each = matrix("weight", 40, 1, 3, 3)
    assert torch.equal(op.pack_mixer(each, dtype, ALGORITHMS["depthwise"]), each.float().flatten(1).t())
    block = op.pack_local_block(each[:, 0], each[:, 0, 0, 0], weight[..., 0, 0], each[:, 0, 1, 1], dtype)
    assert torch.equal(block[0], each.float().flatten(1).t())
    assert torch.equal(block[2], panels(weight[..., 0, 0], dtype))


def test_filters_of_wide_layers_are_a_matrix() -> None:
    weight = matrix("weight", 40, 40, 3, 3)
    packed = op.pack_mixer(weight, torch.float32, ALGORITHMS["winograd4_at_call"])
    assert torch.equal(packed, panels(weight.flatten(1), torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_winograd_has_transformed_filters(dtype: torch.dtype) -> None:
    """F(2x2): U = G g G^T of each filter, a matrix [depth, 32] for each of its 16 positions."""
    weight = matrix("weight", 40, 40, 3, 3)
    g = torch.tensor([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]], dtype=torch.float64)
    transformed = torch.einsum("ia,nkab,jb->ijnk", g, weight.float().double(), g).flatten(0, 1)
    each = torch.stack([panels(matrix.float(), dtype).unflatten(0, (2, -1)) for matrix in transformed], 1)
    packed = op.pack_mixer(weight, dtype, ALGORITHMS["winograd2"])
    torch.testing.assert_close(
        packed.float(), each.flatten().float(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-6, atol=1e-7
    )


def test_filters_of_bytes_lie_tap_by_tap_of_64_channels() -> None:
    weight = torch.randint(-127, 128, (70, 70, 3, 3), dtype=torch.int8)
    chunks = F.pad(weight, (0, 0, 0, 0, 0, 58)).flatten(2).unflatten(1, (2, 64)).transpose(2, 3).flatten(1)
    assert torch.equal(op.pack_mixer_int8(weight, ALGORITHMS["int8"]), op.pack_int8(chunks.contiguous(), 0))


def test_winograd_has_filters_of_integers_in_pairs() -> None:
    """U = G g G^T as above, and no fraction in it."""
    weight = torch.randint(-127, 128, (40, 40, 3, 3), dtype=torch.int8)
    g = torch.tensor([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]])
    transformed = torch.einsum("ia,nkab,jb->nkij", g, weight.long(), g).flatten(2)
    columns = F.pad(transformed, (0, 0, 0, 24, 0, 24)).unflatten(0, (2, 32)).unflatten(2, (32, 2))  # [panel][32][32][2][16]
    expected = columns.permute(0, 4, 2, 1, 3).flatten().to(torch.int16)
    assert torch.equal(op.pack_mixer_int8(weight, ALGORITHMS["int8_winograd2"]).view(torch.int16), expected)


def test_the_stem_and_the_gates() -> None:
    weight, rows = matrix("weight", 2, 5, 3, 4, 4), uniform("rows", 2, 5)
    packed = op.pack_stem(weight, rows, rows, rows, torch.bfloat16)
    assert torch.equal(packed[0], panels(weight.flatten(2).flatten(0, 1), torch.bfloat16))
    squeeze = matrix("squeeze", 3, 5)
    row = uniform("row", 15)
    gates = op.pack_gated_concat(uniform("filters", 2, 7, 7), row[:1], squeeze, squeeze.t(), row, row)
    assert torch.equal(gates[2], squeeze.float())
    assert torch.equal(gates[3], squeeze.float())  # transposed


def calls() -> dict[str, tuple[Any, ...]]:
    """Arguments of every op that packs, of every one of the frozen network, and of the mixer's products."""
    c, f32 = 8, torch.float32
    row, rows, square = torch.randn(c), torch.randn(2, c), torch.randn(c, c)
    dense, depthwise, patch = torch.randn(c, c, 3, 3), torch.randn(c, 1, 3, 3), torch.randn(2, c, 3, 4, 4)
    x, y, z = (torch.randn(2, 4, 6, c) for _ in range(3))
    out, wide = torch.empty(2, 4, 6, c), torch.empty(2, 4, 6, 3 * c)
    linear = (torch.randn(64, 64), torch.randn(64), f32, STRASSEN)
    block = (torch.randn(c, 3, 3), row, square, row)
    stem = (patch, rows, rows, rows)
    gates = (torch.randn(2, 7, 7), row[:1], torch.randn(3, c), torch.randn(c, 3), torch.randn(3 * c), torch.randn(3 * c))
    mlp = (torch.randn(20, 32), torch.randn(20), torch.randn(c, 20), row, f32, STRASSEN)
    deep, filters = torch.randn(2, 4, 6, 32), ALGORITHMS["winograd4"]
    expand, project = (torch.randint(-127, 128, shape, dtype=torch.int8) for shape in ((20, 32), (c, 20)))
    whole = torch.randint(-127, 128, (c, c, 3, 3), dtype=torch.int8)
    return {
        "copy_weight": (torch.randn(70),),
        "pack_linear": linear,
        "pack_local_block": (*block, f32),
        "pack_stem": (*stem, torch.bfloat16),
        "pack_gated_concat": gates,
        "pack_mixer": (dense, torch.bfloat16, filters),
        "pack_mixer depthwise": (depthwise, f32, ALGORITHMS["depthwise"]),
        "pack_mlp": mlp,
        "linear_out": (
            (deep, deep.clone()), *op.pack_linear(*linear), None, torch.empty(2, 4, 6, 64), 0, 1, 1e-5, 1, False, STRASSEN
        ),
        "local_block_out": (x, *op.pack_local_block(*block, f32), out, 1e-6),
        "stem_out": (torch.randn(2, 3, 16, 24), *op.pack_stem(*stem, f32), out, torch.empty_like(out), 1e-6, 1e-5),
        "gated_concat_out": (x, y, z, *op.pack_gated_concat(*gates), wide, False, 1e-6),
        "mixer_out": (z, op.pack_mixer(dense, f32, filters), out, filters),
        "mixer_convolution": (z, dense, False),
        "mixer_convolution of a gradient": (z, dense, True),
        "mixer_filters_gradient": (x, z),
        "pack_int8": (expand, 0),
        "linear_int8_out": (
            (deep,), op.pack_int8(expand, 0), torch.rand(20), torch.randn(20), None, torch.empty(2, 4, 6, 20), 0, 0, 1e-5, 1,
            False, 9.0,
        ),
        "local_block_int8_out": (
            x, *op.pack_local_block(*block, f32)[:2], op.pack_int8(expand[:c, :c], 0), torch.rand(c), row, out, 1e-6, 9.0,
        ),
        "pack_mixer_int8": (whole, ALGORITHMS["int8"]),
        "pack_mixer_int8 winograd": (whole, ALGORITHMS["int8_winograd2"]),
        "mixer_int8_out": (x, op.pack_mixer_int8(whole, ALGORITHMS["int8"]), torch.rand(c), out, 9.0, ALGORITHMS["int8"]),
        "mlp_int8_out": (
            deep, op.pack_int8(expand, 0), torch.rand(20), torch.randn(20), op.pack_int8(project, library.lib.mlp_block),
            torch.rand(c), row, x, out, 9.0, 7.0,
        ),
        "mean_out": (x, torch.empty(2, 1, 1, c)),
        "mlp_out": (deep, *op.pack_mlp(*mlp), x, out, STRASSEN),
        "window_attention_out": (torch.randn(2, 4, 6, 3 * c), torch.randn(49, 1), None, out, 1, 4, 2, 0.3),
    }  # fmt: skip


CALLS = calls() if library.lib is not None else {}


@pytest.mark.parametrize("name", CALLS)
def test_schema_and_fake(name: str) -> None:
    """What is written to, what is returned, its size without data: as the schema and the fake say."""
    torch.library.opcheck(getattr(op, name.partition(" ")[0]).default, CALLS[name])


def test_every_op_is_checked() -> None:
    ops = {name.partition("::")[2] for name in torch._C._dispatch_get_all_op_names() if name.startswith("hifuse_fast::")}
    ours = {name for name in ops if not name.startswith(("fused_", "cuda_"))}
    assert ours == {name.partition(" ")[0] for name in CALLS} | {"window_attention", "window_attention_backward"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("linear_out", {10: DIRECT}, "weight must be packed for this algorithm: 4096 contiguous elements"),
        ("linear_out", {10: 9}, "linear has no algorithm of the number 9"),
        ("linear_out", {10: ALGORITHMS["winograd2"]}, "linear has no algorithm of the number 2"),
        ("mlp_out", {7: DIRECT}, "expand must be packed for this algorithm"),
        ("mixer_out", {3: ALGORITHMS["winograd4_at_call"]}, "weight must be packed for this algorithm"),
        ("mixer_out", {3: STRASSEN}, "mixer has no algorithm of the number 1"),
        ("pack_linear", {0: torch.randn(60, 64)}, "bias has a wrong size: dimension 0 must be 60, got 64"),
        ("pack_linear", {2: torch.bfloat16}, "Strassen's product is of float32"),
        ("pack_linear", {2: torch.float16}, "prepared ops serve float32 and bfloat16"),
        ("pack_linear", {0: torch.ones(64, 64, dtype=torch.int64)}, "weight must be a floating-point tensor"),
        ("pack_mixer", {2: ALGORITHMS["winograd4_at_call"]}, "transformed at the call in float32 alone"),
        ("pack_mixer depthwise", {2: DIRECT}, "weight has a wrong size: dimension 1 must be 8, got 1"),
        ("pack_int8", {0: torch.ones(8, 8)}, "weight must be a matrix of int8 on the CPU"),
        (
            "linear_int8_out",
            {1: torch.ones(640, dtype=torch.int8)},
            "weight must be packed for int8: 1152 contiguous bytes on the CPU",
        ),
        ("linear_int8_out", {2: torch.ones(19)}, "scale must be 20 contiguous float32 numbers on the CPU"),
        ("mixer_int8_out", {1: torch.ones(8, dtype=torch.int8)}, "weight must be packed for int8: 18560 contiguous bytes"),
        ("pack_mixer_int8", {1: ALGORITHMS["winograd4"]}, "mixer_int8"),
        ("mlp_int8_out", {1: torch.ones(1024)}, "expand must be packed for int8"),
        ("mlp_int8_out", {5: torch.ones(7)}, "project_scale must be 8 contiguous float32 numbers on the CPU"),
        ("pack_mlp", {2: torch.randn(8, 21)}, "project has a wrong size: dimension 1 must be 20, got 21"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[int, Any], message: str) -> None:
    arguments = list(CALLS[name])
    for i, value in changes.items():
        arguments[i] = value
    with pytest.raises(RuntimeError, match=message):
        getattr(op, name.partition(" ")[0])(*arguments)
