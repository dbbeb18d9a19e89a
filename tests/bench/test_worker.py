"""An engine in a process of its own: it gets ready, runs, and ends; or it says why not."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers
from hifuse_fast import create_model, save_checkpoint
from hifuse_fast.bench.network import NUM_CLASSES
from hifuse_fast.bench.worker import Call, Engine, FailedError, Task, Worker


def test_a_worker_prepares_runs_and_ends(tmp_path: Path):
    network = create_model("hifuse_tiny", num_classes=NUM_CLASSES).eval()
    save_checkpoint(network, tmp_path / "weights.safetensors")
    images = torch.randn(1, 3, 32, 32)
    task = Task("hifuse_tiny", tmp_path / "weights.safetensors", images.numpy(), torch.float32, 1)
    worker = Worker(peers.ENGINES["eager"], task)
    try:
        ready = worker.wait()
        worker()
        with torch.inference_mode():
            assert torch.from_numpy(ready.logits).allclose(network(images), atol=1e-5)
        assert 0 < ready.seconds < 60
        if ready.peak_mib is not None:
            weights = sum(tensor.nbytes for tensor in network.state_dict().values()) / 2**20
            assert weights < ready.peak_mib < 2 * weights
        os.kill(worker.pid, signal.SIGKILL)
        worker._process.join()
        with pytest.raises(FailedError, match="its process ended with exit code -9"):
            worker()
    finally:
        worker.close()
    assert not Path(f"/proc/{worker.pid}").exists()


def breaks(network: torch.nn.Module, images: torch.Tensor, dtype: torch.dtype) -> Call:
    if dtype == torch.float32:
        raise RuntimeError("no luck")
    os._exit(3)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "message"), [(torch.float32, "RuntimeError: no luck"), (torch.bfloat16, "exit code 3")])
def test_a_worker_that_breaks_says_so(tmp_path: Path, dtype: torch.dtype, message: str):
    save_checkpoint(create_model("hifuse_tiny", num_classes=NUM_CLASSES), tmp_path / "weights.safetensors")
    task = Task("hifuse_tiny", tmp_path / "weights.safetensors", np.zeros((1, 3, 32, 32), np.float32), dtype, 1)
    worker = Worker(Engine(breaks), task)
    try:
        with pytest.raises(FailedError, match=message):
            worker.wait()
    finally:
        worker.close()
