"""Which backends there are, which one serves a call, and why another one cannot.

An op is a row in `_OPS`: its kernels, module by module. A kernel module has `forward` and `backward` for the function over
maps, the op's class for the prepared op, or both; and `why_not(**call) -> str | None`: the reason it cannot serve this call, or
None. Nothing falls back silently: a backend asked for by name that cannot serve raises `BackendError`; only "auto" chooses.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import platform
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from hifuse_fast import _native
from hifuse_fast._version import __version__
from hifuse_fast.checks import check_choice

BACKENDS = ("auto", "reference", "native", "triton")

# Per op, the kernel modules in the order in which "auto" tries them on any device; the reference serves what they cannot, and
# on a GPU what it is faster at.
_OPS: dict[str, dict[str, str]] = {
    "window_attention": {
        "triton": "hifuse_fast.ops.window_attention.triton",
        "native": "hifuse_fast.ops.window_attention.native",
    },
    "layer_norm": {"triton": "hifuse_fast.ops.layer_norm.triton"},
    "depthwise_norm": {"triton": "hifuse_fast.ops.depthwise_norm.triton"},
    "batch_norm": {"triton": "hifuse_fast.ops.batch_norm.triton"},
    "max_mean": {"triton": "hifuse_fast.ops.max_mean.triton"},
    "concat_norm": {"triton": "hifuse_fast.ops.concat_norm.triton"},
    "linear": {"triton": "hifuse_fast.ops.linear.triton", "native": "hifuse_fast.ops.linear.native"},
    "stem": {"triton": "hifuse_fast.ops.stem.triton", "native": "hifuse_fast.ops.stem.native"},
    "local_block": {"triton": "hifuse_fast.ops.local_block.triton", "native": "hifuse_fast.ops.local_block.native"},
    "gated_concat": {"triton": "hifuse_fast.ops.gated_concat.triton", "native": "hifuse_fast.ops.gated_concat.native"},
    "mixer": {"triton": "hifuse_fast.ops.mixer.triton", "native": "hifuse_fast.ops.mixer.native"},
    "mlp": {"triton": "hifuse_fast.ops.mlp.triton", "native": "hifuse_fast.ops.mlp.native"},
}

_auto_triton = ("cuda", "meta")  # where "auto" may take Triton, whose interpreter on the CPU is for tests
_chosen: ContextVar[str] = ContextVar("hifuse_fast_backend", default="auto")


class BackendError(RuntimeError):
    """A backend asked for by name cannot serve the call; the message has its reasons."""


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the `with` block (or the decorated function), ops called with backend="auto" use `backend`.

    Local to the thread and the async task, may be nested, and yields to an explicit `backend=` on a call. What torch.compile
    has compiled keeps the backend that it was compiled under.

    Raises:
        ValueError: `backend` is none of "auto", "reference", "native", "triton".
    """
    token = _chosen.set(check_choice("backend", backend, BACKENDS))
    try:
        yield
    finally:
        _chosen.reset(token)


# torch.compile cannot trace a ContextVar; so compiled code keeps the backend it was compiled under.
@torch.compiler.assume_constant_result  # type: ignore[misc, untyped-decorator, unused-ignore]
def current_backend() -> str:
    """The backend that `use_backend` set for this thread, "auto" where none did."""
    return _chosen.get()


def select(
    op: str, backend: str, *, prepared: bool = False, key: tuple[object, ...] | None = None, **call: Any
) -> ModuleType | None:
    """The kernel module that serves this call, or None for the reference.

    Args:
        op: the op's name, a folder of `hifuse_fast.ops`.
        backend: the call's own `backend` argument; "auto" defers to `use_backend`.
        prepared: whether it is the prepared op that is called, not the function over maps.
        key: what of the call decides whether Triton or the vendor's library is faster on a GPU, sizes and words ("" for none);
            None where "auto" is not to ask the tables.
        call: what the kernels' `why_not` look at (tensors and options of the op).

    Raises:
        ValueError: an unknown backend.
        BackendError: a backend asked for by name cannot serve the call.
    """
    backend = check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = current_backend()
    if backend == "reference":
        return None
    if backend == "auto":
        for name in _OPS[op]:
            if name == "triton" and call["device"].type not in _auto_triton:
                continue
            if why_not(op, name, prepared=prepared, **call) is not None:
                continue
            if name == "triton" and key is not None:
                # Not sooner: a size in a string ties compiled code to that size.
                words = [word for word in [f"{part}" for part in key] if word]
                if not _takes_triton(op, " ".join(words), call["dtype"], call["device"]):
                    return None
            return _kernels(op, name)
        return None
    reason = why_not(op, backend, prepared=prepared, **call)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot serve {op}: {reason}")
    return _kernels(op, backend)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype that autocast computes in on `device`, None where it is off."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def prepared_class(op: str, backend: str, **call: Any) -> type[Any]:
    """The class of the prepared op `op` that serves this call, the reference's where no kernel does; raises as `select` does.

    It has the op's name: `GatedConcat` of `hifuse_fast.ops.gated_concat.native` or `.reference`.
    """
    module = select(op, backend, prepared=True, **call) or _reference(op)
    found: type[Any] = getattr(module, _class_name(op))
    return found


def why_not(op: str, backend: str, *, prepared: bool = False, **call: Any) -> str | None:
    """Why `backend` cannot serve this call of `op` (of its prepared form), or None when it can."""
    if backend == "reference":
        return None
    unavailable = _unavailable(backend)
    if unavailable is not None:
        return unavailable
    if backend not in _OPS[op] or not hasattr(_kernels(op, backend), _class_name(op) if prepared else "forward"):
        return f"there is no {backend} kernel for it yet"
    reason: str | None = _kernels(op, backend).why_not(**call)
    return reason


# torch.compile cannot trace the tables; they do not change.
@torch.compiler.assume_constant_result  # type: ignore[misc, untyped-decorator, unused-ignore]
def _takes_triton(op: str, key: str, dtype: torch.dtype, device: torch.device) -> bool:
    from hifuse_fast.gpu import choices

    return choices.takes_triton(op, key, dtype, device)


def _class_name(op: str) -> str:
    """Of the prepared op."""
    return "".join(word.capitalize() for word in op.split("_"))


def _reference(op: str) -> ModuleType:
    return importlib.import_module(f"hifuse_fast.ops.{op}.reference")


_HAS_TRITON = importlib.util.find_spec("triton") is not None  # once: torch.compile of PyTorch 2.11 cannot trace the question


def _unavailable(backend: str) -> str | None:
    """Why nothing at all can run on this backend here, or None."""
    if backend == "native":
        return _native.why_missing
    if backend == "triton" and not _HAS_TRITON:
        return "the package triton is not installed"
    return None


_loaded = SimpleNamespace()  # modules by name: an attribute is looked up when torch.compile meets it, a dict was copied before


def _kernels(op: str, backend: str) -> ModuleType:
    _load(op, backend)
    module: ModuleType = getattr(_loaded, f"{op}_{backend}")
    return module


# torch.compile cannot trace an import, nor take a module for a constant.
@torch.compiler.assume_constant_result  # type: ignore[misc, untyped-decorator, unused-ignore]
def _load(op: str, backend: str) -> bool:
    if not hasattr(_loaded, f"{op}_{backend}"):
        setattr(_loaded, f"{op}_{backend}", importlib.import_module(_OPS[op][backend]))
    return True


@dataclass(frozen=True)
class Info:
    """What this machine has, what was built, and which backend serves which op (None) or why it does not (a reason).

    Ops go by the name of their public function: "linear" is the one over maps, "prepare_linear" makes the prepared op.
    """

    version: str
    machine: dict[str, str]
    build: dict[str, str]
    ops: dict[str, dict[str, str | None]]

    def __str__(self) -> str:
        lines = [f"hifuse_fast {self.version}"]
        for title, rows in (("machine", self.machine), ("build", self.build)):
            lines += [f"\n{title}"] + [f"  {key:<24}{value}" for key, value in rows.items()]
        lines.append("\nbackends")
        for op, served in self.ops.items():
            for backend, reason in served.items():
                lines.append(f"  {op:<24}{backend:<16}{'yes' if reason is None else 'no: ' + reason}")
        return "\n".join(lines)


def info() -> Info:
    """What this machine has, what was built, and which backend serves what, with reasons where one does not."""
    return Info(__version__, _machine(), _build(), _ops())


def _machine() -> dict[str, str]:
    rows = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "torch cpu capability": torch.backends.cpu.get_cpu_capability(),
    }
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows["cuda devices"] = ", ".join(devices) or "none"
    return rows


def _build() -> dict[str, str]:
    if _native.lib is None:
        return {"native library": f"no: {_native.why_missing}"}
    return {
        "native library": str(_native.lib.__file__),
        **{key: str(value) for key, value in _native.lib.build_info().items()},
        "instruction sets built": ", ".join(_native.lib.compiled_isas()),
        "instruction sets usable": ", ".join(_native.lib.usable_isas()),
        "instruction set in use": _native.lib.isa(),
    }


def _ops() -> dict[str, dict[str, str | None]]:
    """What serves the public functions of each op; the reference has both forms where there are both."""
    found = {}
    for op in _OPS:
        if hasattr(_reference(op), op):
            found[op] = _served(op, prepared=False)
        if hasattr(_reference(op), _class_name(op)):
            found[f"prepare_{op}"] = _served(op, prepared=True)
    return found


def _served(op: str, prepared: bool) -> dict[str, str | None]:
    """For each backend, whether it could serve a float32 call on the devices of this machine."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return {
        f"{backend} {device}": why_not(op, backend, prepared=prepared, device=torch.device(device), dtype=torch.float32)
        for backend in BACKENDS[1:]
        for device in devices
    }
