"""The bench of large images: what is put together, what is compared, and that a wrong engine gets no time."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import torch

from benchmarks import growth
from hifuse_fast import HiFuse
from hifuse_fast.bench import turns
from hifuse_fast.testing import golden_uniform, golden_weights
from tools import pages

LIMITS = turns.Limits({"float32": 1e12}, 1e10)
CASE = growth.Case("narrow", 2, "float32", flop=1e9)


def make() -> HiFuse:
    options = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "conv_depths": (1, 1, 1, 1), "num_heads": (1, 2, 3, 4)}
    return HiFuse(num_classes=5, **options).eval()


@pytest.fixture(scope="module")
def narrow() -> HiFuse:
    network = make()
    golden_weights(network)
    return network


def pixels() -> torch.Tensor:
    return golden_uniform("pixels", (4, 3, 64, 64)).float()


def test_mosaic_keeps_every_image_in_its_place() -> None:
    images = torch.arange(9 * 2 * 3 * 4).view(9, 2, 3, 4)
    large = growth.mosaic(images, 3)
    assert large.shape == (1, 2, 9, 12)
    for i, image in enumerate(images):
        y, x = i // 3 * 3, i % 3 * 4
        assert torch.equal(large[0, :, y : y + 3, x : x + 4], image)


def test_both_are_checked_and_timed_for_as_many_pixels(narrow: HiFuse) -> None:
    small, large = growth.measure(narrow, CASE, pixels(), LIMITS, 0.0)
    assert (small.engine, large.engine) == ("224 x 224", "448 x 448")
    assert max(small.error or 1, large.error or 1) < 1e-4
    assert small.ms_p50 is not None
    assert large.ms_p50 is not None
    assert {small.per, large.per} == {"image"}
    assert large.ratio == pytest.approx(small.ms_p50 / large.ms_p50)
    assert large.images_per_s == pytest.approx(1e3 / large.ms_p50)


def test_a_wrong_output_gets_no_time(narrow: HiFuse) -> None:
    with mock.patch.object(growth, "optimize_for_inference", return_value=make()):
        found = growth.measure(narrow, CASE, pixels(), LIMITS, 0.0)
    assert [row.ms_p50 for row in found] == [None, None]
    assert all("wrong output" in row.note for row in found)


def test_the_page_shows_the_cost_of_a_pixel(narrow: HiFuse) -> None:
    found = growth.measure(narrow, CASE, pixels(), LIMITS, 0.0)
    small, large = (dataclasses.replace(row, ms_p50=value) for row, value in zip(found, (2.0, 2.5), strict=True))
    page = pages.growth([small, dataclasses.replace(large, ratio=0.8)])
    assert "| narrow | float32 | 448 x 448 | 2.00 | 2.50 | 1.25x |" in page
