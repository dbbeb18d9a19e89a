"""What this machine is and what it can do at most: names, arithmetic peak, copy bandwidth, peak memory of a call."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

import hifuse_fast
from hifuse_fast.bench.cuda import EventTimer
from hifuse_fast.bench.rows import Conditions

# (vendor, family, first model, last model) of /proc/cpuinfo. Virtual machines often hide the model's name, never these.
_MICROARCHITECTURES = {
    ("AuthenticAMD", 0x17, 0x00, 0x2F): "zen",
    ("AuthenticAMD", 0x17, 0x30, 0xFF): "zen2",
    ("AuthenticAMD", 0x19, 0x00, 0x0F): "zen3",
    ("AuthenticAMD", 0x19, 0x10, 0x1F): "zen4",
    ("AuthenticAMD", 0x19, 0x20, 0x5F): "zen3",
    ("AuthenticAMD", 0x19, 0x60, 0xAF): "zen4",
    ("AuthenticAMD", 0x1A, 0x00, 0xFF): "zen5",
    ("GenuineIntel", 0x06, 0x55, 0x55): "skylake-sp",
    ("GenuineIntel", 0x06, 0x6A, 0x6C): "icelake-sp",
    ("GenuineIntel", 0x06, 0x8F, 0x8F): "sapphire-rapids",
    ("GenuineIntel", 0x06, 0xCF, 0xCF): "emerald-rapids",
    ("GenuineIntel", 0x06, 0xAD, 0xAE): "granite-rapids",
}
_MEASURED_SOURCES = ("hifuse_fast", "csrc", "CMakeLists.txt", "setup.py", "benchmarks/*.py")


def device_slug(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The device as a file name, as `amd-epyc-zen4-2c` or `nvidia-h200`. 2c are the cores that this process may use."""
    if device.type == "cuda":
        return slug(torch.cuda.get_device_name(device))
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    first = dict(re.findall(r"^(.+?)\s*: ?(.*)$", text.split("\n\n")[0], re.MULTILINE))
    name = re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b|@.*", " ", first.get("model name", platform.machine()))
    return slug(f"{name} {_microarchitecture(first)} {usable_cores()}c")


def _microarchitecture(cpu: dict[str, str]) -> str:
    family, model = cpu.get("cpu family", ""), cpu.get("model", "")
    if not (family.isdecimal() and model.isdecimal()):
        return ""
    for (vendor, known_family, first, last), name in _MICROARCHITECTURES.items():
        if (vendor, known_family) == (cpu.get("vendor_id"), int(family)) and first <= int(model) <= last:
            return name
    return f"family{family} model{model}"


def slug(text: str) -> str:
    """Lower case, with one dash for each run of other characters."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def usable_cores() -> int:
    """Logical CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_dtypes(device: torch.device) -> tuple[str, ...]:
    """The dtypes that a bench takes if none is asked for: float32, and bfloat16 where PyTorch has kernels for it.

    On an x86 CPU without AVX-512 PyTorch has none. It multiplies number by number, at a hundredth of its float32 rate.
    """
    slow = device.type == "cpu" and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    return ("float32",) if slow and platform.machine() in ("x86_64", "AMD64") else ("float32", "bfloat16")


def conditions(device: torch.device) -> Conditions:
    """The conditions of a run that starts now on `device`."""
    if device.type == "cuda":
        isa = "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    else:
        isa = hifuse_fast.info().build.get("instruction set in use", "none")
    return Conditions(
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        commit=commit(Path(hifuse_fast.__file__).parents[1]),
        package=hifuse_fast.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        device=device_slug(device),
        threads=torch.get_num_threads(),
        isa=isa,
    )


def commit(root: Path) -> str:
    """Short hash of the checkout at `root`; with "+dirty" if measured sources differ from it; "unknown" outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root.resolve():
            return "unknown"  # installed into a folder of somebody else's checkout
        changed = git("status", "--porcelain", "--", *_MEASURED_SOURCES)
        return git("rev-parse", "--short=9", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def arithmetic_peak(device: torch.device, dtype: torch.dtype, budget_s: float = 1.5) -> float:
    """FLOP/s of the best square torch matmul (1024, 2048, 4096; on CUDA also 8192) of `dtype`, measured now within `budget_s`.

    This is no figure of a datasheet. It is what the vendor's GEMM reaches on this machine with this many threads, with two
    operations a multiply-add. A kernel that beats it has a share above 1.
    """
    sizes = (1024, 2048, 4096, 8192) if device.type == "cuda" else (1024, 2048, 4096)
    best, begin = 0.0, time.perf_counter()
    for n in sizes:
        left = budget_s - (time.perf_counter() - begin)
        if best and 3 * 2.0 * n**3 / best > left:
            break
        a, b, out = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
        share = max(budget_s / len(sizes), 0.0)
        best = max(best, 2.0 * n**3 / _fastest(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, share))  # type: ignore[misc]
    return best


def copy_bandwidth(device: torch.device, budget_s: float = 1.0) -> float:
    """Bytes a second of copying 256 MiB (on CUDA 1 GiB) in memory, read and written together, the best within `budget_s`."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.ones_like(source)
    return 2.0 * source.nbytes / _fastest(lambda: target.copy_(source), device, budget_s)


def _fastest(call: Callable[[], object], device: torch.device, budget_s: float) -> float:
    timer = EventTimer(device) if device.type == "cuda" else _seconds
    call()
    fastest, begin = float("inf"), time.perf_counter()
    for done in range(1000):
        fastest = min(fastest, timer(call))
        if time.perf_counter() - begin > budget_s and done >= 2:
            break
    return fastest


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


BUSY = "others took"  #: how the note of a row begins that was timed beside other processes


class Neighbours:
    """The share of this process's cores that others, the hypervisor included, took within a `with` block.

    The processes whose ids are in `own` do not count as others. They must live as long as the block.

    Taking turns does not make ratios fair on a busy machine. Where one thread of a parallel region has to wait for a core, all
    threads wait. So an engine of many short regions loses far more than an engine of few.
    """

    share: float | None = None  #: 0 to 1; None where the system does not tell

    def __init__(self, own: Sequence[int] = ()) -> None:
        self._own = own

    def __enter__(self) -> Neighbours:
        self._before = _cpu_seconds(self._own)
        return self

    def __exit__(self, *_: object) -> None:
        after = _cpu_seconds(self._own)
        if self._before is None or after is None:
            return
        total, busy, own = (late - early for late, early in zip(after, self._before, strict=True))
        self.share = max(0.0, busy - own) / total if total > 0 else None

    @property
    def note(self) -> str:
        """What a row says of it. Below 5 %, which is the noise of an idle system and of the clock, it says nothing."""
        return "" if self.share is None or self.share < 0.05 else f"{BUSY} {100 * self.share:.0f} % of the CPU"


def _cpu_seconds(own: Sequence[int] = ()) -> tuple[float, float, float] | None:
    """Seconds of this process's cores since boot: all, the busy ones, those of this process and `own`. None without /proc."""
    stat = Path("/proc/stat")
    if not (stat.exists() and hasattr(os, "sched_getaffinity")):
        return None
    mine = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    lines = [line.split() for line in stat.read_text().splitlines()]
    ticks = [[int(field) for field in fields[1:9]] for fields in lines if fields[0] in mine]  # user .. steal; idle, iowait 3, 4
    total, idle = sum(map(sum, ticks)), sum(core[3] + core[4] for core in ticks)
    times = os.times()
    tick = os.sysconf("SC_CLK_TCK")
    return total / tick, (total - idle) / tick, times.user + times.system + sum(map(_ticks, own)) / tick


def _ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()  # the name before it may hold anything
    return int(fields[11]) + int(fields[12])


def peak_memory(call: Callable[[], object], device: torch.device) -> float | None:
    """MiB by which one `call` raises memory, at its highest, above what was held before it. None where it cannot be measured.

    On CUDA torch's allocator is asked. On a CPU under Linux it is resident memory (VmHWM of /proc/self/status, reset through
    /proc/self/clear_refs). Weights that exist already are not counted.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    held = resident_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    call()
    return None if held is None else max(0.0, _status_kib("VmHWM") / 1024 - held)


def resident_memory() -> float | None:
    """MiB of this process in memory, without what malloc keeps for later. None where the system does not tell."""
    try:
        _release_free_memory()
        return _status_kib("VmRSS") / 1024
    except (OSError, KeyError):
        return None


def _release_free_memory() -> None:
    """Give memory that malloc keeps for later back to the system, so that a call cannot use it unseen (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status_kib(field: str) -> int:
    found = re.search(rf"^{field}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise KeyError(field)
    return int(found[1])
