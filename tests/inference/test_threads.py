"""The threads of the frozen network: its own, on any number of which it gives the same bits; PyTorch's are left alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hifuse_fast
from hifuse_fast import optimize_for_inference
from hifuse_fast.backends.native import threads as native
from hifuse_fast.backends.native.library import lib
from hifuse_fast.inference.network import OptimizedHiFuse
from hifuse_fast.ops.functions.padding import pad_to_multiple
from tests.support.bits import threads
from tests.support.frozen import image, narrow
from tests.support.processes import python

pytestmark = pytest.mark.skipif(lib is None, reason="the compiled library is not built")
X = image(3, 70, 50, torch.float32)


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many threads as a test asks for, on any machine."""
    monkeypatch.setattr(native, "count", torch.get_num_threads)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def network(request: pytest.FixtureRequest) -> OptimizedHiFuse:
    network = optimize_for_inference(narrow(dtype=torch.float32), dtype=request.param)
    assert network._replayed
    return network


@pytest.fixture
def lent() -> Iterator[Any]:
    """How many threads of the pool ops of this thread have at the moment; 0: those of PyTorch."""

    def ask() -> int:
        assert lib is not None
        count = lib.lend_threads(0)
        lib.lend_threads(count)
        return int(count)

    assert ask() == 0
    yield ask
    assert ask() == 0


def test_bits_on_any_number_of_threads_that_changes_from_call_to_call(network: OptimizedHiFuse) -> None:
    with threads(1):
        expected = network(X)
    for count in (2, 4, 3, 1, 2):
        with threads(count):
            assert torch.equal(network(X), expected), f"{count} threads"


def test_eight_callers_at_once(network: OptimizedHiFuse) -> None:
    expected = network(X)
    results: list[Tensor] = []

    def call() -> None:
        for _ in range(10):
            results.append(network(X))

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(results) == 80
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.slow
def test_a_thousand_calls_of_eight_threads(network: OptimizedHiFuse) -> None:
    expected = network(X)
    wrong: list[int] = []

    def call() -> None:
        for i in range(125):
            with_one_more = network(X[: 1 + i % 3])
            if not torch.equal(with_one_more, expected[: 1 + i % 3]):
                wrong.append(i)

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child(network: OptimizedHiFuse) -> None:
    with threads(3):
        expected = network(X)
        child = os.fork()
        if child == 0:  # where PyTorch's threads would wait for ever
            os._exit(0 if torch.equal(network(X), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert torch.equal(network(X), expected)


def test_casting_and_padding_in_the_stem_are_those_of_pytorch(network: OptimizedHiFuse) -> None:
    cast = pad_to_multiple(X.to(network.dtype).permute(0, 2, 3, 1), 32).permute(0, 3, 1, 2)
    strided = X.flip(3).contiguous().flip(3).transpose(2, 3).contiguous().transpose(2, 3)
    for images in (X, strided, X.to(memory_format=torch.channels_last)):
        assert torch.equal(network(images), network(cast))


def test_a_replaced_module_is_among_threads_of_pytorch(network: OptimizedHiFuse, lent: Any) -> None:
    seen = []
    hook = network.stages[0].fusion.mixer.register_forward_hook(lambda *_: seen.append(lent()))  # type: ignore[union-attr]
    network(X)
    hook.remove()
    network(X)
    assert seen == [0]


def test_threads_are_given_back_after_an_error(network: OptimizedHiFuse, lent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail(*_: Any) -> None:
        seen.append(lent())
        raise RuntimeError("as if out of memory")

    monkeypatch.setattr(network, "_run", fail)
    with threads(3), pytest.raises(RuntimeError, match="as if out of memory"):
        network(X)
    assert seen == [3]


def test_a_number_of_threads_out_of_range() -> None:
    assert lib is not None
    with pytest.raises(ValueError, match="threads must be at least 0, got -1"):
        lib.lend_threads(-1)
    with pytest.raises(RuntimeError, match="positive"):
        torch.set_num_threads(0)


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert lib is not None
    cores = lib.usable_cores()
    assert 1 <= cores <= len(os.sched_getaffinity(0))
    assert hifuse_fast.info().build["cores usable"] == str(cores)
    with threads(1):
        assert native.count() == 1
    with threads(cores + 3):
        assert native.count() == cores


def test_the_cores_of_a_call_are_those_of_its_affinity() -> None:
    """A thread that may run on one core alone, as of `taskset`."""
    found = []

    def call() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        assert lib is not None
        found.append(lib.usable_cores())

    caller = threading.Thread(target=call)
    caller.start()
    caller.join()
    assert found == [1]


ALONE = """
import torch
from pathlib import Path
from hifuse_fast import load_optimized
from hifuse_fast.backends.native import threads

def names():
    return sorted(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm"))

torch.set_num_threads(1)
network = load_optimized(r"{file}")
images = torch.zeros({shape})
torch.set_num_threads(3)
threads.count = torch.get_num_threads
before = names()
network(images), network(images)
after = names()
for name in before:
    after.remove(name)
print(after)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="this system does not list threads")
def test_no_thread_of_pytorch_begins_to_spin(tmp_path: Path) -> None:
    """A call of this size has none of PyTorch's regions: two threads began, and both are of the pool."""
    file, shape = tmp_path / "network.safetensors", (3, 2, 190, 190)
    assert torch.zeros(shape).numel() > 6 * 32768  # from which PyTorch casts and pads on all threads
    optimize_for_inference(narrow(dtype=torch.float32), dtype=torch.bfloat16).save(file)
    assert python(ALONE.format(file=file, shape=shape)) == "['hifuse', 'hifuse']"
