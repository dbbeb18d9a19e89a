"""What a user puts before the functions and operators of PyTorch, or in their place, acts as in the official network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from hifuse_fast import ops, optimize_for_inference, use_backend
from hifuse_fast.backends import transforms
from hifuse_fast.backends.select import BackendError
from hifuse_fast.blocks import GlobalBlock
from tests.support.modules import assert_same, narrow, official, some_images, two_steps

SMALL: dict[str, Any] = {"depths": (1, 1, 1, 1), "conv_depths": (1, 1, 1, 1)}


class Functions(TorchFunctionMode):
    """Half as much again of what some functions give."""

    def __init__(self, *functions: Callable[..., Any]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 1.5 if func in self.functions else out


class Operators(TorchDispatchMode):
    """Half as much again of what some operators give."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return out * 1.5 if func.overloadpacket.__name__ in self.names else out


def found(images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [narrow(**SMALL)(images)]


@pytest.mark.parametrize(
    "mode",
    [
        Functions(F.linear, F.conv2d),
        Functions(F.layer_norm, F.pad, torch.Tensor.softmax, F.batch_norm),
        Operators("addmm", "mm", "convolution"),
        Operators("bmm", "gelu", "_softmax"),
    ],
)
def test_a_mode_of_the_user(mode: Any) -> None:
    images = some_images(1, 33, 40)  # so that windows are padded
    before = found(images)
    with mode, official():
        expected = found(images)
    with mode:
        assert_same(found(images), expected)
    assert not torch.allclose(expected[0], before[0], rtol=1e-3)


@pytest.mark.slow
def test_a_step_under_a_mode() -> None:
    steps = []
    for way in (official, contextlib.nullcontext):
        with Functions(F.linear, F.gelu, F.batch_norm), way():
            steps.append(two_steps(narrow(**SMALL), some_images(2, 33, 40)))
    assert_same(steps[1], steps[0])


@pytest.mark.parametrize("name", ["linear", "conv2d", "layer_norm", "batch_norm", "gelu", "relu", "pad"])
def test_a_function_that_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, model, function = some_images(1, 33, 40), narrow(**SMALL), getattr(F, name)
    monkeypatch.setattr(F, name, lambda *args, **options: 1.5 * function(*args, **options))
    with torch.no_grad():
        with official():
            expected = model(images)
        assert_same([model(images)], [expected])
    with pytest.raises(ValueError, match=f"cannot be frozen: another torch.nn.functional.{name} than PyTorch's is at work"):
        optimize_for_inference(model, torch.float64, backend="reference")


def test_a_kernel_that_was_asked_for_by_name_refuses_functions_and_shows_its_operator() -> None:
    seen = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    z, weight = torch.randn(1, 3, 3, 4), torch.randn(4, 4, 3, 3)
    with (
        Functions(),
        pytest.raises(BackendError, match=r"a TorchFunctionMode \(Functions\) is at work.*the reference serves it"),
    ):
        ops.mixer(z, weight, backend="native")
    with Watch(), use_backend("native"):
        ops.mixer(z, weight)
    assert "fused_mixer" in seen


def test_modes_of_pytorch_change_nothing() -> None:
    with torch.device("cpu"), FlopCounterMode(display=False):
        assert transforms.replaced() is None
        assert not transforms.watched()


@pytest.mark.slow
def test_a_mode_around_compiled_code() -> None:
    torch.manual_seed(0)
    block, x = GlobalBlock(16, 2, window_size=4).double(), torch.randn(1, 5, 6, 16, dtype=torch.float64)
    nn.init.normal_(block.attn.qkv.bias)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x))
        with Functions(F.linear), official():
            expected = block(x)
        with Functions(F.linear):
            torch.testing.assert_close(compiled(x), expected)
        torch.testing.assert_close(compiled(x), block(x))
