"""The adapters of the other engines, without their packages."""

from __future__ import annotations

import pytest
import torch

from benchmarks import peers
from hifuse_fast.bench.worker import MissingError


@pytest.mark.parametrize("name", ["onnxruntime", "openvino latency", "openvino throughput", "mnn", "zentorch"])
def test_an_absent_package_is_missing_with_its_reason(monkeypatch: pytest.MonkeyPatch, name: str):
    engine = peers.ENGINES[name]

    def no_module(package: str):
        raise ImportError(f"No module named {package!r}")

    monkeypatch.setattr(peers.importlib, "import_module", no_module)
    with pytest.raises(MissingError, match=rf"{engine.package} cannot be imported \(No module named"):
        engine.prepare(torch.nn.Identity(), torch.zeros(8, 3, 32, 32), torch.float32)


def test_what_an_engine_cannot_do_is_missing_with_its_reason():
    images = torch.zeros(1, 3, 32, 32)
    with pytest.raises(MissingError, match="no bfloat16"):
        peers.ENGINES["onnxruntime"].prepare(torch.nn.Identity(), images, torch.bfloat16)
    with pytest.raises(MissingError, match="cannot be shared"):
        peers.ENGINES["openvino throughput"].prepare(torch.nn.Identity(), images, torch.float32)


@pytest.mark.parametrize(
    ("batch", "threads", "requests"), [(8, 2, 2), (8, 3, 2), (9, 4, 3), (1, 8, 1), (7, 4, 1), (32, 64, 32)]
)
def test_requests_share_a_batch_evenly(batch: int, threads: int, requests: int):
    assert peers._share(batch, threads) == requests
