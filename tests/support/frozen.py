"""What the tests of the frozen network share: its model at narrow widths, images, the reference's result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hifuse_fast import create_model, use_backend
from hifuse_fast.testing import golden_uniform, golden_weights

WIDTHS: dict[str, Any] = {
    "num_classes": 5,
    "in_chans": 2,
    "dims": (8, 12, 20, 32),
    "depths": (1, 2, 3, 1),
    "conv_depths": (2, 1, 1, 1),
    "num_heads": (2, 3, 5, 4),
    "window_size": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "double sigmoid": {"channel_gate": "double_sigmoid"},
    "depthwise": {"mixer": "depthwise"},
    "no qkv bias": {"qkv_bias": False},
    "no classifier": {"num_classes": 0},
    "official window, dropout": {"window_size": 7, "drop_rate": 0.5, "drop_path_rate": 0.3},
}


def make(dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    model = create_model("hifuse_tiny", **{**WIDTHS, **options}, dtype=dtype)
    golden_weights(model)
    return model.eval()


def image(batch: int = 1, height: int = 64, width: int = 64, dtype: torch.dtype = torch.float64) -> Tensor:
    return (2 * golden_uniform("image", (batch, 2, height, width)) - 1).to(dtype)


def run(model: nn.Module, x: Tensor) -> Any:
    with torch.no_grad(), use_backend("reference"):
        return model(x)


def narrow(**options: Any) -> Any:
    """For the interpreter and the emulation, which are slow; heads have 8 channels, as few as their kernels serve."""
    widths = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "conv_depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    return make(**{**widths, **options})
