"""The network against the official one's numbers: weights and images by the golden rule, values in tests/data/golden."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

import hifuse_fast
from hifuse_fast.model import StageMaps
from hifuse_fast.testing import golden_image, relative_error
from tests.support.golden import assert_close, check_training_step, golden, make
from tests.support.paths import GOLDEN

SIZES = ("tiny", "small", "base")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def tiny() -> hifuse_fast.HiFuse:
    return make("tiny")


@pytest.fixture(scope="module", params=SIZES)
def golden_model(request: pytest.FixtureRequest) -> tuple[str, hifuse_fast.HiFuse]:
    return request.param, request.getfixturevalue("tiny") if request.param == "tiny" else make(request.param)


def run(model: hifuse_fast.HiFuse, image: Tensor, backend: str) -> tuple[Tensor, StageMaps]:
    with torch.no_grad(), hifuse_fast.use_backend(backend):
        maps = model.forward_stages(image)
        return model.forward_head(maps.fused_maps[-1]), maps


def assert_stages(maps: StageMaps, expected: dict[str, Tensor], tolerance: float) -> None:
    branches = {"local": maps.local_maps, "global": maps.global_maps, "hff": maps.fused_maps}
    seen = 0
    for branch, stage_maps in branches.items():
        for stage, stage_map in enumerate(stage_maps, start=1):
            x = stage_map.double()
            step = x.numel() // 64
            for name, actual in {
                "mean": x.mean((0, 2, 3))[:16],
                "rms": x.pow(2).mean((0, 2, 3)).sqrt()[:16],
                "samples": x.flatten()[::step][:64],
            }.items():
                assert_close(f"{branch}_{stage}.{name}", actual, expected[f"{branch}_{stage}.{name}"], tolerance)
                seen += 1
    assert seen + 1 == len(expected)  # and the logits


@pytest.mark.parametrize("size", SIZES)
def test_the_state_dict_has_the_official_keys_shapes_and_order(size: str) -> None:
    expected = json.loads((GOLDEN / f"{size}_state_dict.json").read_text())
    state_dict = hifuse_fast.create_model(f"hifuse_{size}", 7, device="meta").state_dict()
    actual = {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in state_dict.items()}
    assert list(actual.items()) == list(expected.items())


@pytest.mark.slow  # float32 meets the same numbers, and a smaller image those of the reference in float64
@pytest.mark.parametrize("golden_model", SIZES, indirect=True)
def test_eval_float64_of_every_size(golden_model: tuple[str, hifuse_fast.HiFuse]) -> None:
    size, model = golden_model
    expected = golden(f"{size}_eval_224")
    logits, maps = run(model, golden_image(2, 224, 224), "reference")
    assert_close("logits", logits, expected["logits"], TOLERANCE[torch.float64])
    assert_stages(maps, expected, TOLERANCE[torch.float64])


# The reference has the numbers of a rectangle below, in float64 and float32.
@pytest.mark.parametrize(
    ("golden_model", "backend"),
    [
        ("tiny", "auto"),
        ("small", "auto"),
        pytest.param("base", "auto", marks=pytest.mark.slow),
        *(pytest.param(size, "reference", marks=pytest.mark.slow) for size in SIZES),
    ],
    indirect=["golden_model"],
)
def test_eval_float32_of_every_size(golden_model: tuple[str, hifuse_fast.HiFuse], backend: str) -> None:
    size, model = golden_model
    model = clone(model).float()
    expected = golden(f"{size}_eval_224")
    logits, maps = run(model, golden_image(2, 224, 224).float(), backend)
    assert_close("logits", logits, expected["logits"], TOLERANCE[torch.float32])
    assert_stages(maps, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float64, "reference"), (torch.float32, "reference"), (torch.float32, "auto")]
)
def test_a_rectangle_whose_windows_are_padded_at_every_stage(
    tiny: hifuse_fast.HiFuse, dtype: torch.dtype, backend: str
) -> None:
    expected = golden("tiny_eval_160x256")
    logits, maps = run(clone(tiny).to(dtype), golden_image(1, 160, 256).to(dtype), backend)
    assert_close("logits", logits, expected["logits"], TOLERANCE[dtype])
    assert_stages(maps, expected, TOLERANCE[dtype])


def test_the_double_sigmoid_of_older_checkpoints(tiny: hifuse_fast.HiFuse) -> None:
    model = clone(tiny, channel_gate="double_sigmoid").float()
    expected = golden("tiny_eval_224_double_sigmoid")["logits"]
    logits, _ = run(model, golden_image(2, 224, 224).float(), "reference")
    assert_close("logits", logits, expected, TOLERANCE[torch.float32])
    assert relative_error(expected, golden("tiny_eval_224")["logits"]) > 1e-4  # the two gates do differ


@pytest.mark.parametrize(
    ("dtype", "backend"),
    [
        pytest.param(torch.float64, "reference", marks=pytest.mark.slow),  # the kernels meet the same official numbers
        pytest.param(torch.float32, "reference", marks=pytest.mark.slow),
        (torch.float32, "auto"),
    ],
)
def test_a_training_step(tiny: hifuse_fast.HiFuse, dtype: torch.dtype, backend: str) -> None:
    check_training_step(clone(tiny, copy=True).to(dtype), backend)


def clone(model: hifuse_fast.HiFuse, *, copy: bool = False, channel_gate: str = "sigmoid") -> hifuse_fast.HiFuse:
    """Another network of the same size and (unless `copy`) on the same weights' memory."""
    name = next(n for n in hifuse_fast.list_models() if len(model.layers3.blocks) == {"t": 2, "s": 6, "b": 18}[n[7]])
    other = hifuse_fast.create_model(name, 7, device="meta", channel_gate=channel_gate)
    weights = {key: tensor.clone() if copy else tensor for key, tensor in model.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other.eval()
