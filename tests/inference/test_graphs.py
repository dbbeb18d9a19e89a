"""CUDA graphs of the frozen network: when one is captured, kept and dropped, on a stand-in for CUDA, and on a GPU."""

from __future__ import annotations

import copy
import threading
import time
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import create_model, optimize_for_inference
from hifuse_fast.inference.buffers import MapPool
from hifuse_fast.inference.graphs import Graphs, Run, capture
from tests.support.kernels import needs_gpu


class Fake:
    """Captures as CUDA does: one place for images and one for results, which a replay copies from and to."""

    def __init__(self, fails: bool = False) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.replays = 0
        self.fails = fails
        self.inside = 0

    def __call__(self, run: Run, images: Tensor) -> Run:
        self.shapes.append(tuple(images.shape))
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        static, result, lock = torch.empty_like(images), torch.empty_like(images), threading.Lock()

        def replay(images: Tensor) -> Any:
            assert lock.acquire(blocking=False), "two calls in one graph"
            static.copy_(images)
            time.sleep(1e-3)
            result.copy_(run(static))
            self.replays += 1
            copied = result.clone()
            lock.release()
            return copied

        return replay


class Eager:
    """The function, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return 2 * images


def test_the_second_call_of_a_shape_is_captured() -> None:
    fake, eager = Fake(), Eager()
    graphs = Graphs(fake)
    a, b = torch.ones(1, 3, 4, 4), torch.ones(2, 3, 4, 4)
    for x, captured, replays in ((a, 0, 0), (b, 0, 0), (a, 1, 1), (a, 1, 2), (b, 2, 3), (a.double(), 2, 3), (a.double(), 3, 4)):
        assert torch.equal(graphs(eager, x), 2 * x)
        assert (len(fake.shapes), fake.replays) == (captured, replays)


def test_results_do_not_alias() -> None:
    graphs, eager = Graphs(Fake()), Eager()
    x = torch.ones(1, 1, 2, 2)
    results = [graphs(eager, i * x) for i in range(5)]
    assert all(torch.equal(result, 2 * i * x) for i, result in enumerate(results))


def test_few_shapes_are_kept_and_the_last_used_stay() -> None:
    fake, eager = Fake(), Eager()
    graphs = Graphs(fake, most_shapes=2)
    x = [torch.ones(n, 1, 1, 1) for n in range(1, 4)]
    for n in (0, 0, 1, 1, 0, 2, 2):  # the third shape drops the second
        graphs(eager, x[n])
    assert [key[0] for key in graphs._shapes] == [1, 3]
    graphs(eager, x[0])
    assert [shape[0] for shape in fake.shapes] == [1, 2, 3]
    graphs(eager, x[1])
    graphs(eager, x[1])
    assert [shape[0] for shape in fake.shapes] == [1, 2, 3, 2]


def test_no_images_are_never_captured() -> None:
    fake, eager = Fake(), Eager()
    graphs = Graphs(fake)
    for _ in range(3):
        assert graphs(eager, torch.ones(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert fake.shapes == []


def test_a_failure_leaves_the_way_without_graphs() -> None:
    fake, eager = Fake(fails=True), Eager()
    graphs, x = Graphs(fake), torch.ones(1, 3, 4, 4)
    graphs(eager, x)
    with pytest.warns(UserWarning, match=r"no CUDA graph for images of \[1, 3, 4, 4\], .*: operation not .* capturing$"):
        assert torch.equal(graphs(eager, x), 2 * x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(graphs(eager, x), 2 * x)
    assert len(fake.shapes) == 1
    assert eager.calls == 3


def test_an_error_of_a_call_is_no_end() -> None:
    class Failing(Eager):
        def __call__(self, images: Tensor) -> Tensor:
            if images.isnan().any():
                raise ValueError("boom")
            return super().__call__(images)

    def capture_function(run: Run, images: Tensor) -> Run:
        return run

    graphs, x = Graphs(capture_function), torch.ones(1, 1, 1, 1)
    graphs(Failing(), x)
    for _ in range(2):
        with pytest.raises(ValueError, match="boom"):
            graphs(Failing(), x * torch.nan)
    assert torch.equal(graphs(Failing(), x), 2 * x)  # the lock is free


def test_calls_from_many_threads() -> None:
    fake, eager = Fake(), Eager()
    graphs = Graphs(fake)
    failures = []

    def work(i: int) -> None:
        for k in range(10):
            x = torch.full((1 + i % 2, 1, 2, 2), float(10 * i + k))
            if not torch.equal(graphs(eager, x), 2 * x):
                failures.append((i, k))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(fake.shapes) == [(1, 1, 2, 2), (2, 1, 2, 2)]
    assert fake.replays == 58


def test_a_copy_starts_without_graphs() -> None:
    graphs = Graphs(capture, most_shapes=3)
    graphs(Eager(), torch.ones(1))
    copied = copy.deepcopy(graphs)
    assert copied._shapes == {}
    assert (copied._capture, copied._most_shapes) == (capture, 3)


def test_a_captured_graph_has_maps_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a stream those that no other stream writes to."""
    pool = MapPool(torch.float32, torch.device("cuda"))
    stream, capturing = SimpleNamespace(cuda_stream=1), False
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: stream)
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: capturing)
    with pool.lend(1, 32, 32) as first:
        pass
    capturing = True
    with pool.lend(1, 32, 32) as captured:
        assert captured is not first
    capturing = False
    with pool.lend(1, 32, 32) as again:
        assert again is first
    stream.cuda_stream = 2
    with pool.lend(1, 32, 32) as other:
        assert other is not first


def small() -> Any:
    model = create_model(
        "hifuse_tiny", num_classes=5, in_chans=2, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), conv_depths=(1, 1, 1, 1),
        num_heads=(1, 1, 2, 2),
    )  # fmt: skip
    return model.eval()


def test_a_network_on_the_cpu_has_none() -> None:
    network = optimize_for_inference(small())
    assert network.configuration.cuda_graphs
    assert network._graphs is None


def test_a_network_runs_by_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for CUDA."""
    network = optimize_for_inference(small())
    x = torch.randn(1, 2, 40, 33)
    expected = network(x)
    fake = Fake()
    network._graphs = Graphs(lambda run, images: (fake(run, images), run)[1])
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: False)
    for _ in range(3):
        assert torch.equal(network(x), expected)
    assert fake.shapes == [(1, 2, 40, 33)]
    assert copy.deepcopy(optimize_for_inference(small()))._graphs is None


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_gpu(dtype: torch.dtype) -> None:
    model = small().cuda()
    network = optimize_for_inference(model, dtype)
    without = optimize_for_inference(model, dtype, cuda_graphs=False)
    assert {op.backend for op in network._made.values()} == {"triton"}
    images = [torch.randn(batch, 2, 64, 33, device="cuda") for batch in (1, 2, 1, 1, 2, 2)]
    results = [network(x) for x in images]
    for x, result in zip(images, results, strict=True):
        torch.testing.assert_close(result, without(x))

    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    failures = []

    def work(i: int) -> None:
        with torch.cuda.stream(streams[i]):
            for _ in range(20):
                out = network(images[i])
                if not torch.equal(out, results[i]):
                    failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
