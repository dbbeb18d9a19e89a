"""The programs in C, built once, and a small frozen network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hifuse_fast import optimize_for_inference
from tests.support.c_library import BUILD, QUICK, build_programs
from tests.support.frozen import make


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_programs(BUILD, tmp_path_factory.mktemp("c"))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    narrow = {**QUICK, "dims": (8, 8, 8, 8), "num_heads": (1, 1, 1, 1)}
    optimize_for_inference(make(torch.float32, **narrow), backend="native").save(path)
    return path
