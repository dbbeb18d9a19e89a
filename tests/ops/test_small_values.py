"""Maps that are tiny, or zero in places: no op makes something of nothing, because a norm behind it may amplify that.

The tolerance rule holds in the zero places by themselves: what should be zero is zero, but for TINY.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hifuse_fast.testing import assert_within_rule
from tests.support.calls import Call, every_call
from tests.support.prepared import place

pytestmark = pytest.mark.gpu
SCALES = (1e-30, 1e-15, 1e-4)


def darken(x: Tensor, scale: float) -> Tensor:
    """The second image is zero, and the left half of the third; the last is `scale` times as large as the first."""
    x = x * torch.tensor([1.0, 1.0, 1.0, scale], device=x.device, dtype=x.dtype).view(-1, *[1] * (x.dim() - 1))
    x[1] = 0
    axis = 3 if x.shape[1] == 3 else 2  # of the columns: images are channels first
    x[2].narrow(axis - 1, 0, x.shape[axis] // 2).zero_()
    return x


@pytest.mark.parametrize(("call", "kernel", "dtype"), every_call())
def test_tiny_and_zero(call: Call, kernel: str, dtype: torch.dtype) -> None:
    """Each image is compared by itself. The maps are drawn by the call, the weights are those of one scale."""
    weights, maps = (place(kernel, tensors, dtype) for tensors in (call.weights, call.maps))
    for scale in SCALES if kernel == "native" else SCALES[1:2]:  # Triton's interpreter is slow
        tensors = {**weights, **{name: darken(x, scale) for name, x in maps.items()}}
        exact = {name: tensor.double() for name, tensor in tensors.items()}
        results = (call.outputs(kernel, tensors), call.outputs("reference", tensors), call.outputs("reference", exact))
        for actual, eager, expected in zip(*results, strict=True):
            for image in range(len(actual)):
                own = (actual[image], eager[image], expected[image])
                assert_within_rule(*own, f"image {image}, scale {scale}", bound=call.bound(dtype))
            left = slice(0, 1) if actual.shape[2] < 8 else slice(0, actual.shape[2] // 4)
            own = (actual[2][:, left], eager[2][:, left], expected[2][:, left])
            if actual.shape[1] > 2:  # a map
                assert_within_rule(*own, f"the zero half, scale {scale}", bound=call.bound(dtype))
