"""FLOP counters see what ops cost, though the counter's module is imported later than the package, or never."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hifuse_fast import optimize_for_inference
from tests.support.frozen import image, make
from tests.support.kernels import kernels


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
    for first, second in (("hifuse_fast", "torch.utils.flop_counter"), ("torch.utils.flop_counter", "hifuse_fast")):
        code = (
            f"import {first}, {second}, torch; from torch.utils.flop_counter import flop_registry; "
            "print(torch.ops.hifuse_fast.fused_mlp in flop_registry)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"
