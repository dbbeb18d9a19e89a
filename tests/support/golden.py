"""The official network's numbers, from tests/data/golden, and the comparison of a training step with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import hifuse_fast
from hifuse_fast.testing import golden_image, golden_weights, relative_error
from tests.support.paths import GOLDEN


@dataclass(frozen=True)
class Bounds:
    """Relative errors that a training step may make."""

    forward: float  #: of logits, loss and running statistics
    gradients: float
    # Some exact gradients are 0, as that of a bias just before a batch norm: what the official code got for it is rounding, and
    # so is ours. Others are small sums of large terms: those of the spatial gate of stage 1 are a thousandth of all gradients
    # and less, and lose two to four digits in float32, in the reference too.
    rounding: float  #: absolute, of the norm of a parameter's gradient; that of all together is 122


BOUNDS = {torch.float64: Bounds(1e-9, 1e-9, 1e-14), torch.float32: Bounds(1e-5, 1e-4, 1e-3)}


def make(size: str) -> hifuse_fast.HiFuse:
    """The network with the golden weights, float64, in eval mode."""
    model = hifuse_fast.create_model(f"hifuse_{size}", 7, device="meta", dtype=torch.float64).to_empty(device="cpu")
    golden_weights(model)
    return model.eval()


def golden(name: str) -> dict[str, Tensor]:
    """The official numbers of that name."""
    return load_file(GOLDEN / f"{name}.safetensors")


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = relative_error(actual.cpu(), expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e}, allowed {tolerance:.0e}"


def check_training_step(model: hifuse_fast.HiFuse, backend: str) -> None:
    """A training step of `model`, hifuse_tiny with the golden weights, on its device and in its dtype: the official numbers."""
    expected = golden("tiny_train_224")
    weight = next(model.parameters())
    bounds = BOUNDS[weight.dtype]
    image = golden_image(2, 224, 224).to(weight).requires_grad_()
    with hifuse_fast.use_backend(backend):
        logits = model.train()(image)
        loss = F.cross_entropy(logits, torch.tensor([0, 1], device=weight.device))
        loss.backward()

    assert_close("logits", logits.detach(), expected.pop("logits"), bounds.forward)
    assert_close("loss", loss.detach(), expected.pop("loss"), bounds.forward)
    assert image.grad is not None
    samples = image.grad.flatten()[:: image.numel() // 64][:64]
    assert_close("image gradient", samples, expected.pop("input_grad.samples"), bounds.gradients)
    for name, buffer in model.named_buffers():
        if "running" in name:
            assert_close(name, buffer.double().norm(), expected.pop(f"buffer_norm.{name}"), bounds.forward)
    dead = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            dead += 1
            assert f"grad_norm.{name}" not in expected
        else:
            norm, official = parameter.grad.double().norm().item(), expected.pop(f"grad_norm.{name}").item()
            assert abs(norm - official) <= bounds.gradients * official + bounds.rounding, f"{name}: {norm} is not {official}"
    assert dead == 48
    assert not expected
