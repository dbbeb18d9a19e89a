"""A narrow network whose every weight matters, and what the official network gives: every child called as a module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from hifuse_fast import HiFuse, use_backend

#: Modules that no forward calls, by name: for the official state_dict alone.
UNUSED = r"norm|head|layers\d\.blocks\.\d+\.norm2|fu1\.(Updim|norm1|W3)(\..*)?|fu[2-4]\.(norm2|W)(\..*)?"


def narrow(seed: int = 0, **options: object) -> HiFuse:
    """In float64 and in eval mode. No weight is one or zero."""
    sizes = {"dims": (16, 32, 48, 64), "num_heads": (1, 2, 2, 2), "depths": (2, 1, 1, 1), "conv_depths": (2, 1, 1, 1)}
    torch.manual_seed(seed)
    model = HiFuse(3, **{**sizes, **options}).double().eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not name.endswith("running_var"):
                tensor.add_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64), alpha=0.05)
    return model


def some_images(batch: int = 2, height: int = 40, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def official() -> Iterator[None]:
    """Within the block, networks do what the official one does: the hook on all modules has them called, on the reference."""
    handle = register_module_forward_hook(_nothing)
    try:
        with use_backend("reference"):
            yield
    finally:
        handle.remove()


def _nothing(module: nn.Module, args: object, out: object) -> None:
    pass


def steps(model: Any, images: Tensor) -> list[Tensor]:
    """The outputs and gradients of two steps, and the state after them."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    found = []
    for _ in range(2):
        optimizer.zero_grad()
        out = model(images)
        out.square().sum().backward()
        found += [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    return [*found, *(x.detach().clone() for x in (*model.parameters(), *model.buffers()))]


def two_steps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """`steps` of training, and what the network gives then."""
    found = steps(model.train(), images)
    return [*found, model.eval()(images).detach()]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-8) -> None:
    """Each to the tolerance, of its largest value or of a thousandth of the largest of all: some gradients are zero."""
    assert len(actual) == len(expected)
    top = 1e-3 * max(x.abs().max().item() for x in expected)
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == b.shape, i
        assert a.dtype == b.dtype, i
        error = (a.double() - b.double()).abs().max().item()
        assert error <= tolerance * max(b.abs().max().item(), top), (i, error)
