"""The network against the official one's numbers: weights and images by the golden rule, values in tests/data/golden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import hifuse_fast
from hifuse_fast.model import StageMaps
from hifuse_fast.testing import golden_image, golden_weights, relative_error

GOLDEN = Path(__file__).parent / "data" / "golden"
SIZES = ("tiny", "small", "base")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
# The exact gradient of a bias just before a batch norm is 0: what the official code got for it is rounding, and so is ours.
ROUNDING = 1e-14


@pytest.fixture(scope="module")
def tiny() -> hifuse_fast.HiFuse:
    return make("tiny")


@pytest.fixture(scope="module", params=SIZES)
def golden_model(request: pytest.FixtureRequest) -> tuple[str, hifuse_fast.HiFuse]:
    return request.param, request.getfixturevalue("tiny") if request.param == "tiny" else make(request.param)


def make(size: str) -> hifuse_fast.HiFuse:
    model = hifuse_fast.create_model(f"hifuse_{size}", 7, device="meta", dtype=torch.float64).to_empty(device="cpu")
    golden_weights(model)
    return model.eval()


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


def run(model: hifuse_fast.HiFuse, image: Tensor, backend: str) -> tuple[Tensor, StageMaps]:
    with torch.no_grad(), hifuse_fast.use_backend(backend):
        maps = model.forward_stages(image)
        return model.forward_head(maps.fused_maps[-1]), maps


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = relative_error(actual.cpu(), expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}"


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


def test_eval_float64_of_every_size(golden_model: tuple[str, hifuse_fast.HiFuse]) -> None:
    size, model = golden_model
    expected = golden(f"{size}_eval_224")
    logits, maps = run(model, golden_image(2, 224, 224), "reference")
    assert_close("logits", logits, expected["logits"], TOLERANCE[torch.float64])
    assert_stages(maps, expected, TOLERANCE[torch.float64])


@pytest.mark.parametrize("backend", ["reference", "auto"])
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
    model = clone(tiny, channel_gate="double_sigmoid")
    expected = golden("tiny_eval_224_double_sigmoid")["logits"]
    logits, _ = run(model, golden_image(2, 224, 224), "reference")
    assert_close("logits", logits, expected, TOLERANCE[torch.float64])
    assert relative_error(expected, golden("tiny_eval_224")["logits"]) > 1e-4  # the two gates do differ


def test_a_training_step_in_float64(tiny: hifuse_fast.HiFuse) -> None:
    expected = golden("tiny_train_224")
    tolerance = TOLERANCE[torch.float64]
    model = clone(tiny, copy=True).train()
    image = golden_image(2, 224, 224).requires_grad_()
    with hifuse_fast.use_backend("reference"):
        logits = model(image)
    loss = F.cross_entropy(logits, torch.tensor([0, 1]))
    loss.backward()

    assert_close("logits", logits.detach(), expected.pop("logits"), tolerance)
    assert_close("loss", loss.detach(), expected.pop("loss"), tolerance)
    assert image.grad is not None
    samples = image.grad.flatten()[:: image.numel() // 64][:64]
    assert_close("image gradient", samples, expected.pop("input_grad.samples"), tolerance)
    for name, buffer in model.named_buffers():
        if "running" in name:
            assert_close(name, buffer.norm(), expected.pop(f"buffer_norm.{name}"), tolerance)
    dead = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            dead += 1
            assert f"grad_norm.{name}" not in expected
        else:
            norm, official = parameter.grad.norm().item(), expected.pop(f"grad_norm.{name}").item()
            assert abs(norm - official) <= tolerance * official + ROUNDING, f"{name}: {norm} is not {official}"
    assert dead == 48
    assert not expected


def clone(model: hifuse_fast.HiFuse, *, copy: bool = False, channel_gate: str = "sigmoid") -> hifuse_fast.HiFuse:
    """Another network of the same size and (unless `copy`) on the same weights' memory."""
    name = next(n for n in hifuse_fast.list_models() if len(model.layers3.blocks) == {"t": 2, "s": 6, "b": 18}[n[7]])
    other = hifuse_fast.create_model(name, 7, device="meta", channel_gate=channel_gate)
    weights = {key: tensor.clone() if copy else tensor for key, tensor in model.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other.eval()
