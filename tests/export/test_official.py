"""The layout of the official code: the function of the reference, for any options and any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hifuse_fast.export.official import OfficialLayout
from tests.support.frozen import VARIANTS, image, make, run

SIZES = [(2, 64, 96), (1, 1, 1), (3, 33, 70), (0, 32, 32)]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_it_is_the_reference_in_another_layout(options: dict[str, Any]) -> None:
    model = make(**options)
    for shape in SIZES:
        x = image(*shape)
        with torch.no_grad():
            torch.testing.assert_close(OfficialLayout(model)(x), run(model, x), rtol=1e-9, atol=1e-12)


def test_maps_of_a_backbone() -> None:
    model = make(features_only=True, out_indices=(2, 0))
    with torch.no_grad():
        for actual, expected in zip(OfficialLayout(model)(image()), run(model, image()), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


def test_what_was_set_on_modules_after_construction_counts() -> None:
    model = make()
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 0.1
    model.layers2.blocks[0].attn.shift_size = 1
    model.fu2.channel_gate = "double_sigmoid"
    with torch.no_grad():
        torch.testing.assert_close(OfficialLayout(model)(image()), run(model, image()), rtol=1e-9, atol=1e-12)
