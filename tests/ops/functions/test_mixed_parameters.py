"""Parameters of a norm in two dtypes: PyTorch takes none, and the message names the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hifuse_fast import ops
from tests.support.modules import narrow, some_images

X, ONE, TWO = torch.rand(1, 2, 2, 8), torch.ones(8), torch.ones(8, dtype=torch.bfloat16)
CALLS: dict[str, Callable[..., Tensor]] = {
    "layer_norm": ops.layer_norm,
    "linear": lambda x, a, b: ops.linear(x, torch.ones(4, 8).to(x), norm_weight=a, norm_bias=b),
    "depthwise_norm": lambda x, a, b: ops.depthwise_norm(x, torch.ones(8, 1, 3, 3), torch.ones(8), a, b),
    "concat_norm": lambda x, a, b: ops.concat_norm(x[..., :4], x[..., 4:], weight=a, bias=b),
    "batch_norm": lambda x, a, b: ops.batch_norm(x, a, b, None, None, training=True),
    "statistics": lambda x, a, b: ops.batch_norm(x, a, a, a, b, training=False),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_two_dtypes_are_refused_by_name(name: str, autocast: bool) -> None:
    expected = {"linear": "norm_bias .* like norm_weight", "statistics": "running_var .* like weight"}.get(
        name, "bias .* like weight"
    )
    with pytest.raises(TypeError, match=expected), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        CALLS[name](X.bfloat16(), ONE, TWO)
    CALLS[name](X.bfloat16(), ONE, ONE)


@pytest.mark.parametrize("gone", ["weight", "bias"])
def test_what_a_norm_has_not_is_of_the_dtype_of_what_it_has(gone: str) -> None:
    model: Any = narrow().float()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            setattr(module, gone, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(some_images().float()).isfinite().all()
