"""What freezing and saving make of wrappers around a network: they are unwrapped, or named."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hifuse_fast import create_model_from_checkpoint, optimize_for_inference, save_checkpoint
from tests.support.frozen import image, make, run
from tests.support.official import official_copy

X = image(1, 40, 33)


class Holder(nn.Module):
    """As a trainer's module without a forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss()


class Scaled(Holder):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images / 255)


def frozen(model: nn.Module) -> nn.Module:
    return optimize_for_inference(model, torch.float64, backend="reference")


def test_wrappers_are_unwrapped_or_named() -> None:
    model = make()
    before = run(model, X)
    for wrapped in (AveragedModel(model), Holder(model), nn.Sequential(model), nn.DataParallel(model), torch.compile(model),
                    Holder(AveragedModel(model)), official_copy(model), Holder(official_copy(model))):  # fmt: skip
        torch.testing.assert_close(frozen(wrapped.eval())(X), before, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match=r"a Scaled around a network, .* forward of its own.*: take .* alone, model\.model$"):
        frozen(Scaled(model).eval())
    with pytest.raises(ValueError, match=r"model must be one network, got a ModuleDict with teacher, student: take one"):
        frozen(nn.ModuleDict({"teacher": model, "student": copy.deepcopy(model)}).eval())
    wrapped = Holder(model).eval()
    wrapped.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"a Holder around a network, and has a forward hook, .*: take model\.model"):
        frozen(wrapped)


def test_wrappers_are_saved_with_the_options_of_the_network(tmp_path: Path) -> None:
    model = make(torch.float32, channel_gate="double_sigmoid")
    for wrapped in (AveragedModel(model), Holder(model)):
        save_checkpoint(wrapped, tmp_path / "a.safetensors")
        assert create_model_from_checkpoint(tmp_path / "a.safetensors").options == model.options
