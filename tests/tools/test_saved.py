"""What autograd keeps for the backward of a training step, ours against the reference."""

from __future__ import annotations

import pytest
import torch

from hifuse_fast import HiFuse
from tools import saved

pytest.importorskip("triton")
NARROW = {"dims": (16, 32, 64, 128), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8), "num_classes": 7}


def test_ours_keeps_less_than_60_percent_of_the_reference() -> None:
    network = saved.make("hifuse_tiny")
    assert saved.kept_mib(network, "triton", batch=8) < 0.6 * saved.kept_mib(network, "reference", batch=8)


def test_images_and_weights() -> None:
    """Twice the images, twice the bytes, but for what belongs to the batch; and no weight is counted."""
    with torch.device("meta"):
        network, wide = HiFuse(**NARROW).train(), HiFuse(**NARROW).double().train()
    one, two = (saved.kept_mib(network, "reference", batch, 64) for batch in (64, 128))
    assert two == pytest.approx(one, rel=0.01)
    assert saved.kept_mib(wide, "reference", 64, 64) == pytest.approx(2 * one, rel=0.05)  # indices keep their size
    depth = HiFuse(**{**NARROW, "depths": (1, 1, 1, 3)}, conv_depths=(1, 1, 1, 1)).to("meta").train()
    block = 64 * 4 * (2 * 2 * 128) * 4  # a map of stage 4 in float32, of 64 images
    assert saved.kept_mib(depth, "reference", 64, 64) * 2**20 * 64 > one * 2**20 * 64 + block
