"""Images that are black, half black, or padded: the norms of the network amplify whatever an op makes of zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import create_model, optimize_for_inference
from hifuse_fast.testing import relative_error
from tests.support.frozen import WIDTHS, image
from tests.support.kernels import kernels

IMAGES = {
    "padded": image(2, 33, 57),
    "black": torch.zeros_like(image()),
    "half black": image() * (torch.arange(64) >= 32),
    "faint": image() * 1e-4,
}


@pytest.fixture(scope="module")
def model() -> Any:
    """With initial weights, whose biases are zero; heads have the 8 channels at least that the kernels ask for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("hifuse_tiny", **{**WIDTHS, "num_heads": (1, 1, 2, 4), "window_size": 7}).eval()


@pytest.mark.parametrize("backend", kernels("prepare_linear", "native"))
@pytest.mark.parametrize("x", IMAGES.values(), ids=IMAGES)
def test_bfloat16_is_as_close_as_the_reference(x: Tensor, backend: str, model: Any) -> None:
    x = x.bfloat16()
    exact = optimize_for_inference(model, torch.float64, backend="reference")(x.double())

    def error(backend: str) -> float:
        return relative_error(optimize_for_inference(model, torch.bfloat16, backend=backend)(x), exact)

    assert error(backend) <= 2 * error("reference") + torch.finfo(torch.bfloat16).eps
