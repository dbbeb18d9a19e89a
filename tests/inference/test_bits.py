"""A frozen network gives an image the same bits alone, in any batch, at any place of it, on any number of threads.

Of the model this is not asked: its products are PyTorch's.
"""

from __future__ import annotations

import pytest
import torch

from hifuse_fast import optimize_for_inference
from hifuse_fast.backends.native.library import lib
from hifuse_fast.inference.network import _mean
from hifuse_fast.testing import golden_uniform
from tests.support.bits import check_bits, threads
from tests.support.frozen import make

pytestmark = pytest.mark.skipif(lib is None, reason="the compiled library is not built")


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (33, 90)], ids=str)
@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow(dtype: torch.dtype, algorithm: str, size: tuple[int, int]) -> None:
    network = optimize_for_inference(make(torch.float32), dtype=dtype, algorithm=algorithm)
    check_bits(network, (2 * golden_uniform("images", (5, 2, *size)) - 1).float(), what=str(size))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maps_of_small(dtype: torch.dtype) -> None:
    """Maps as large as those of 224 x 224, at narrower widths: at the end four of Winograd's tiles an image."""
    options = {"dims": (16, 32, 64, 192), "depths": (1, 2, 1, 1), "conv_depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 6)}
    network = optimize_for_inference(make(torch.float32, **options, window_size=7), dtype=dtype)
    check_bits(network, (2 * golden_uniform("images", (5, 2, 224, 224)) - 1).float())


def test_mean() -> None:
    """A share of the channels for each thread, which PyTorch adds up in another order where it is no multiple of vectors."""
    fused_map = 2 * golden_uniform("map", (1, 7, 7, 768)).float() - 1
    found = []
    for count in (1, 3, 7, 8):
        with threads(count):
            found += [_mean(fused_map, torch.float32, library) for library in (None, "native")]
    assert all(torch.equal(found[0], other) for other in found)
