"""The backend "cuda" without its kernels: loading, devices, and what a launch gives to a library."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hifuse_fast.backends import record, tables
from hifuse_fast.backends.cuda import launch as cuda
from hifuse_fast.backends.cuda import library
from tests.support.processes import python


class Emulation:
    """Stands for the emulation: `scale` writes twice what it reads, `wrong` does nothing and has been seen doing harm."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.allowed: list[tuple[int, int, bool]] = []
        self.emulation = self
        self.found: list[str] = []

    def allow(self, pointer: int, count: int, writable: bool) -> None:
        self.allowed.append((pointer, count, writable))

    def forget(self) -> None:
        self.calls.append("forget")

    def errors(self) -> list[str]:
        found, self.found = self.found, []
        return found

    def build_info(self) -> dict[str, str]:
        return {"cuda": "13.0.88", "architectures": "80-real;90a-real"}

    def touch(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    def wrong(self, *arguments: Any) -> None:
        self.found = ["touch: scale.cu:3 reads what nobody wrote", "and more"]

    def refuses(self, *arguments: Any) -> None:
        raise RuntimeError("too many resources requested for launch")

    def product_counters(self, multiprocessors: int) -> int:
        return 3 * multiprocessors

    def touch_scratch(self, sizes: Any, numbers: Any, multiprocessors: int) -> int:
        return sizes[0] * multiprocessors


@pytest.fixture
def lib(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    stand_in = Emulation()
    monkeypatch.setattr(library, "lib", stand_in)
    library._why_not_device.cache_clear()
    yield stand_in
    library._why_not_device.cache_clear()


def test_tensors_are_given_as_addresses_and_strides_and_the_rest_as_it_is(lib: Emulation) -> None:
    x, out = torch.ones(2, 3, 4, 10)[..., :5], torch.ones(7)
    cuda.launch("touch", [1, 2], [0.5], [x, None], [out, torch.empty(0, 3)])
    assert lib.calls == [((1, 2), (0.5,), (x.data_ptr(), 120, 40, 10, 1), (0,), (out.data_ptr(), 1), (0,), 0), "forget"]
    assert out.isnan().all()  # what is not written is seen
    assert lib.allowed == [(x.data_ptr(), 4 * (23 * 10 + 5), False), (out.data_ptr(), 28, True)]


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.ones(3, 5), 60),
        (torch.ones(3, 5)[:, 1:3], 4 * (2 * 5 + 2)),
        (torch.ones(5, 3, dtype=torch.float16).t(), 30),
        (torch.ones(1, 5).expand(4, 5), 20),
        (torch.ones(0, 5), 0),
        (torch.ones(()), 4),
    ],
)
def test_the_extent_ends_with_the_last_element(tensor: Tensor, expected: int) -> None:
    assert cuda.extent(tensor) == expected


def test_what_the_emulation_found_is_raised_and_what_the_library_says_too(lib: Emulation) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"the emulation of wrong found: touch: scale\.cu:3 reads .*\nand more"):
        cuda.launch("wrong", [], [], [x], [])
    with pytest.raises(RuntimeError, match="too many resources"):
        cuda.launch("refuses", [], [], [x], [])
    assert lib.calls == ["forget", "forget"]
    cuda.launch("touch", [], [], [x], [])  # the next launch knows nothing of it


def test_nothing_runs_on_meta_or_fake_tensors_nor_on_record(lib: Emulation) -> None:
    cuda.launch("touch", [1], [], [torch.ones(3, device="meta")], [])
    with FakeTensorMode():
        x = torch.ones(3)
        cuda.launch("touch", [1], [], [x], [x])
        assert cuda.scratch("touch_scratch", [3], [], x).numel() == 0
    y = torch.ones(3)
    with record.recording("sm_90") as kept:
        cuda.launch("touch", [2], [0.5], [y, None], [y])
        assert cuda.scratch("touch_scratch", [3], [], y).numel() == 0
    assert lib.calls == []
    assert kept.launches == [cuda.Launch("touch", (2,), (0.5,), (y, None), (y,))]
    assert y.tolist() == [1, 1, 1]


def test_scratch_is_as_large_as_the_library_says(lib: Emulation) -> None:
    made = cuda.scratch("touch_scratch", [3], [], torch.ones(1))
    assert (made.dtype, made.numel()) == (torch.uint8, 3 * cuda.EMULATED_MULTIPROCESSORS)


def test_launches_in_threads_do_not_mix_what_they_may_touch(lib: Emulation) -> None:
    """As in autograd, which has threads of its own."""
    begun, done = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        begun.set()
        assert not done.wait(0.05)

    lib.slow = slow  # type: ignore[attr-defined]
    first = threading.Thread(target=cuda.launch, args=("slow", [], [], [torch.ones(1)], []))
    first.start()
    begun.wait()
    cuda.launch("touch", [], [], [torch.ones(1)], [])
    done.set()
    first.join()
    assert lib.calls[0] == "forget"


@pytest.mark.parametrize("dynamic", [False, True])
def test_torch_compile_keeps_a_launch_as_one_operator(lib: Emulation, dynamic: bool) -> None:
    def call(x: Tensor, out: Tensor) -> Tensor:
        cuda.launch("touch", [x.shape[0]], [0.5], [x + 1, None], [out, None])
        return out + x.shape[0]

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (3, 5):
        out = torch.zeros(2)
        assert compiled(torch.ones(length), out).isnan().all()
        assert out.isnan().all()
    sizes = [call[0] for call in lib.calls if call != "forget"]
    assert sizes == [(3,), (5,)]


def test_the_operator_is_what_its_schema_says(lib: Emulation) -> None:
    x, out = torch.ones(3), torch.zeros(3)
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(
        torch.ops.hifuse_fast.cuda_launch, ("touch", [1], [0.5], [x, None], [out]), test_utils=checks
    )  # fmt: skip


@pytest.mark.parametrize(
    ("device", "dtype", "emulated", "expected"),
    [
        ("cpu", torch.float32, True, None),
        ("meta", torch.bfloat16, False, None),
        ("cpu", torch.float64, True, "its kernels serve float32, bfloat16 and float16, not torch.float64"),
        ("cpu", torch.float32, False, "HIFUSE_CUDA_EMULATED=1"),
        ("mps", torch.float32, True, "it serves CUDA tensors, not mps"),
        ("cuda", torch.float32, True, "HIFUSE_CUDA_EMULATED=1 has its kernels run on CPU tensors alone"),
    ],
)
def test_why_it_does_not_serve(
    monkeypatch: pytest.MonkeyPatch, lib: Emulation, device: str, dtype: torch.dtype, emulated: bool, expected: str | None
) -> None:
    monkeypatch.setattr(library, "EMULATED", emulated)
    reason = cuda.why_not(torch.device(device, 0) if device == "cuda" else torch.device(device), dtype)
    assert reason is None if expected is None else expected in str(reason)


@pytest.mark.parametrize(
    ("driver", "capability", "expected"),
    [
        (13000, (9, 0), None),
        (13010, (8, 9), None),
        (12080, (9, 0), "its library was built with CUDA 13.0.88, and the driver knows CUDA 12.8"),
        (13000, (7, 5), "built for 80-real, 90a-real, not for compute capability 7.5"),
        (13000, (10, 0), "not for compute capability 10.0"),
    ],
)
def test_a_device_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, lib: Emulation, driver: int, capability: tuple[int, int], expected: str | None
) -> None:
    monkeypatch.setattr(library, "EMULATED", False)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    reason = library.why_not_device(torch.device("cuda", 0))
    assert reason is None if expected is None else expected in str(reason)


@pytest.mark.parametrize(
    ("architecture", "runs", "does_not"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0)]),
        ("90a-real", [(9, 0)], [(8, 9), (10, 0)]),
        ("100-real", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("100-virtual", [(10, 0), (10, 3), (12, 0)], [(9, 0)]),
        ("100a-virtual", [(10, 0)], [(10, 3), (12, 0)]),
        ("100f-real", [(10, 0), (10, 3)], [(12, 0)]),
        ("90", [(9, 0)], [(8, 0)]),
    ],
)
def test_what_code_runs_on(architecture: str, runs: list[tuple[int, int]], does_not: list[tuple[int, int]]) -> None:
    for capability in runs:
        assert library.runs_on(architecture, capability)
    for capability in does_not:
        assert not library.runs_on(architecture, capability)


def test_a_library_that_is_not_there_has_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(library, "_NAME", "hifuse_fast._no_such_library")
    for emulated, skipped, expected in (
        (True, None, "the emulated CUDA kernels are not built: `make test` builds them"),
        (False, None, "the CUDA kernels are not built: hifuse_fast was installed without building them"),
        (False, "no CUDA compiler was found\n", "the CUDA kernels are not built: no CUDA compiler was found"),
    ):
        monkeypatch.setattr(library, "EMULATED", emulated)
        monkeypatch.setattr(library, "_SKIPPED", tmp_path / "skipped.txt")
        if skipped:
            (tmp_path / "skipped.txt").write_text(skipped)
        assert library._load() == (None, expected)
    monkeypatch.setattr(library.importlib, "import_module", raises(ImportError("undefined symbol: x")))
    assert library._load() == (None, "the CUDA kernels failed to load: undefined symbol: x")


def raises(error: Exception) -> Any:
    def function(*_: Any) -> None:
        raise error

    return function


def test_a_package_without_the_kernels_serves_and_says_why() -> None:
    code = """
import sys
sys.modules["hifuse_fast._cuda"] = None
import hifuse_fast, torch
info = hifuse_fast.info()
print(info.build["cuda library"])
print(info.ops["layer_norm"]["cuda cpu"])
try:
    hifuse_fast.ops.layer_norm(torch.ones(1, 2, 2, 8), torch.ones(8), torch.ones(8), backend="cuda")
except hifuse_fast.BackendError as error:
    print(error)
"""
    library_line, op, error = python(code, HIFUSE_CUDA_EMULATED="0").splitlines()
    assert library_line.startswith("no: the CUDA kernels are not built: ")
    assert op == library_line.removeprefix("no: ")
    assert error == f"backend 'cuda' cannot serve layer_norm: {op}"


def test_kernels_of_a_traced_program_run_where_they_are_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    from hifuse_fast.backends import select

    module = SimpleNamespace()
    monkeypatch.setattr(select._loaded, "layer_norm_cuda", module, raising=False)
    assert select.kernels_on("layer_norm", "cuda", torch.device("cpu")) is module
    assert select.kernels_on("layer_norm", "cuda", torch.device("cuda")) is module
    with pytest.raises(select.BackendError, match="backend 'cuda' serves no mps tensors"):
        select.kernels_on("layer_norm", "cuda", torch.device("mps"))


def test_scratch_memory_brings_counters_that_must_be_zero(lib: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    lib.counting = ("touch_scratch",)  # type: ignore[misc]

    def count(sizes: Any, numbers: Any, *rest: Any) -> None:
        *_, (counters, _), _ = rest
        ctypes.c_int32.from_address(counters).value = sizes[1]

    lib.count = count  # type: ignore[attr-defined]
    x = torch.ones(1)
    cuda.launch("touch", [5], [], [x], [None], scratch_of="touch_scratch")
    sizes, _, *tensors, stream = lib.calls[0]
    assert sizes == (5, cuda.EMULATED_MULTIPROCESSORS)
    assert [len(each) for each in tensors] == [2, 1, 2, 2]  # scratch memory and counters come last
    assert [size for _, size, _ in lib.allowed] == [4, 5, 3 * 4]
    assert stream == 0
    cuda.launch("touch", [0], [], [x], [None], scratch_of="touch_scratch")
    assert lib.calls[2][2:] == ((x.data_ptr(), 1), (0,), (0,), (0,), 0)  # no memory, no counters
    with pytest.raises(RuntimeError, match="the emulation of count found: counters must be zero after it"):
        cuda.launch("count", [5], [], [x], [], scratch_of="touch_scratch")
    with cuda.counted_together(x.device):
        cuda._counters(x.device)[1] = 1
        with pytest.raises(RuntimeError, match="the emulation of touch found: counters must be zero before the launch"):
            cuda.launch("touch", [5], [], [x], [], scratch_of="touch_scratch")


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_launches_begin_early_where_the_table_or_an_override_says_so(architecture: str) -> None:
    device = torch.device("meta")
    with tables.assume(architecture):
        assert not cuda.begin_early(device)
        with tables.override(cuda.DEPENDENT_LAUNCHES, {"on": 1}):
            assert cuda.begin_early(device)
