"""FLOP counters see what ops cost, though the counter's module is imported later than the package, or never."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from hifuse_fast import optimize_for_inference
from tests.support.frozen import image, make
from tests.support.kernels import kernels
from tests.support.processes import python


@pytest.mark.parametrize("options", [{}, {"mixer": "depthwise"}], ids=str)
@pytest.mark.parametrize("kernel", kernels("prepare_linear", "native"))
def test_a_frozen_network_costs_what_its_reference_costs(options: dict[str, Any], kernel: str) -> None:
    model = make(dims=(16, 24, 40, 64), num_heads=(2, 3, 5, 4), **options)
    found = {}
    for backend in (kernel, "reference"):
        frozen = optimize_for_inference(model, backend=backend)
        with FlopCounterMode(display=False) as counter:
            frozen(image(2, 70, 64, torch.float32))
        found[backend] = counter.get_total_flops()
    assert found[kernel] == found["reference"] > 0


def test_the_counter_may_be_imported_before_or_after_the_package() -> None:
    """This process has it first or last, as its test files are loaded: the other order is that of a process of its own."""
    code = "import {}, {}; from torch.utils.flop_counter import flop_registry; "
    code += "import torch; print(torch.ops.hifuse_fast.fused_mlp in flop_registry)"
    assert torch.ops.hifuse_fast.fused_mlp in flop_registry
    code = code.format("torch.utils.flop_counter", "hifuse_fast")
    assert python(code) == "True"
