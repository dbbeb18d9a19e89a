"""Which backends there are, which one serves a call, and why another one cannot.

An op goes by the name of its public function: "linear" is the one over maps, in `ops/functions/linear`; "prepare_linear" makes
the prepared op, in `ops/prepared/linear`. It is an entry of `OPS`: the backends that have kernels of it, each a module of the
op's folder. Such a module has `forward` and `backward`, or for a prepared op its class; and `why_not(**call) -> str | None`,
the reason that it cannot serve this call, or None. Nothing falls back silently: a backend asked for by name that cannot serve
raises `BackendError`; only "auto" chooses: on a GPU as its table says (choices.py), on a CPU the first of `OPS`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from hifuse_fast.backends import choices, tables, transforms
from hifuse_fast.backends.cuda import library as cuda
from hifuse_fast.backends.native import library as native
from hifuse_fast.backends.tracing import constant
from hifuse_fast.checks import check_choice

#: The backends of kernels, each with the types of devices on which "auto" may take them. On the meta device a call gives the
#: shapes that it has on a GPU.
RUNS_ON: dict[str, tuple[str, ...]] = {"native": ("cpu",), "triton": ("cuda", "meta"), "cuda": ("cuda", "meta")}
EMULATED = ("triton", "cuda")  #: those that also run emulated on CPU tensors: for tests, and asked for by name
BACKENDS = ("auto", "reference", *RUNS_ON)
HAVE_TABLES = ("cuda", "meta")  #: types of devices whose architecture has a table

#: Per op, the backends that have kernels, in the order in which "auto" tries them where no table gives one; the reference
#: serves what they cannot.
OPS: dict[str, tuple[str, ...]] = {
    "window_attention": ("triton", "cuda", "native"),
    "layer_norm": ("triton", "cuda"),
    "depthwise_norm": ("triton", "cuda"),
    "batch_norm": ("triton", "cuda"),
    "max_mean": ("triton", "cuda"),
    "concat_norm": ("triton", "cuda"),
    "linear": ("triton", "cuda"),
    "mixer": ("triton", "cuda", "native"),
    "mlp": ("triton", "cuda", "native"),
    "prepare_window_attention": ("triton", "cuda", "native"),
    "prepare_linear": ("triton", "cuda", "native"),
    "prepare_stem": ("triton", "cuda", "native"),
    "prepare_local_block": ("triton", "cuda", "native"),
    "prepare_gated_concat": ("triton", "cuda", "native"),
    "prepare_mixer": ("triton", "cuda", "native"),
    "prepare_mlp": ("triton", "cuda", "native"),
    # Of several prepared ops, whose reference is the calls of these, each by the backend that its own order says.
    "prepare_global_block": ("cuda",),
    "prepare_fuse_path": ("cuda",),
}

_chosen: ContextVar[str] = ContextVar("hifuse_fast_backend", default="auto")


class _ForCompilers(threading.local):
    """What `_chosen` holds in this thread, where torch.compile can read it, and compile anew when it changes."""

    def __init__(self) -> None:
        self.backend = "auto"


_for_compilers = _ForCompilers()


class BackendError(RuntimeError):
    """A backend asked for by name cannot serve the call; the message has its reasons."""


@contextlib.contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Within the `with` block (or the decorated function), ops called with backend="auto" use `backend`.

    Local to the thread and the async task, may be nested, and yields to an explicit `backend=` on a call. A function of
    torch.compile that is called under another backend compiles anew; it sees the block of its thread that was entered last.

    Raises:
        ValueError: `backend` is none of "auto", "reference", "native", "triton", "cuda".
    """
    token, before = _chosen.set(check_choice("backend", backend, BACKENDS)), _for_compilers.backend
    _for_compilers.backend = backend
    try:
        yield
    finally:
        _chosen.reset(token)
        _for_compilers.backend = before


def current_backend() -> str:
    """The backend that `use_backend` set for this thread, "auto" where none did.

    While PyTorch traces for ONNX or TorchScript, which have no operators of ours, that is "reference" in place of "auto".
    """
    # torch.compile cannot trace a ContextVar.
    chosen = _for_compilers.backend if torch.compiler.is_compiling() else _chosen.get()
    return "reference" if chosen == "auto" and traced_for_others() else chosen


@constant
def traced_for_others() -> bool:
    """Whether PyTorch traces for ONNX or TorchScript."""
    # By torch.jit.trace, which the old exporter of ONNX uses too, or by the new exporter. The question to torch.onnx alone
    # would take an import, and 1 us a call.
    return torch._C._is_tracing() or (torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export())


def choose(op: str, backend: str, *, key: tuple[object, ...] = (), **call: Any) -> str:
    """The name of the backend that serves this call.

    Args:
        op: the op's name, see `OPS`.
        backend: the call's own `backend` argument; "auto" defers to `use_backend`.
        key: what of the call decides which backend is the fastest on a GPU: sizes and words, see choices.py; "" for none.
        call: what the kernels' `why_not` look at (tensors and options of the op).

    Raises:
        ValueError: an unknown backend.
        BackendError: a backend asked for by name cannot serve the call.
    """
    backend = check_choice("backend", backend, BACKENDS)
    if backend == "auto":
        backend = current_backend()
    if backend == "auto":
        return _fastest(op, key, call)
    reason = why_not(op, backend, **call)
    if reason is not None:
        raise BackendError(f"backend {backend!r} cannot serve {op}: {reason}")
    return backend


def _fastest(op: str, key: tuple[object, ...], call: dict[str, Any]) -> str:
    device = call["device"]
    if transforms.watched():
        return "reference"
    able = [name for name in candidates(op, device.type) if why_not(op, name, **call) is None]
    if not able:
        return "reference"
    if device.type not in HAVE_TABLES:
        return able[0]
    # The key is not built sooner: a size in a string ties compiled code to that size.
    return _best(op, tables.key(*key, dtype=call["dtype"]), device, " ".join([*able, "reference"]))


def backend_of_parts(op: str, backend: str, **call: Any) -> str:
    """The backend that the parts of a block are asked for: `backend`, or under "auto" that of the block where it has one.

    `op` is the block's, and what `call` holds is as in `choose`.
    """
    if backend != "auto" or current_backend() != "auto":
        return backend
    chosen = choose(op, backend, **call)
    return backend if chosen == "reference" else chosen


def candidates(op: str, device: str) -> list[str]:
    """The backends whose kernels of `op` "auto" may take on this type of device, beside the reference."""
    return [name for name in OPS[op] if device in RUNS_ON[name]]


def select(op: str, backend: str, **call: Any) -> ModuleType | None:
    """The kernel module that serves this call, or None for the reference; arguments and errors are those of `choose`."""
    name = choose(op, backend, **call)
    return None if name == "reference" else _kernels(op, name)


def autocast_dtype(x: torch.Tensor) -> torch.dtype | None:
    """The dtype that autocast casts such tensors as `x` to; None where it is off, and of float64, which it leaves alone."""
    device = x.device.type
    if x.dtype == torch.float64 or device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def prepared_class(op: str, backend: str, **call: Any) -> type[Any]:
    """The class of a prepared op that serves this call, the reference's where no kernel does; raises as `select` does.

    It has the op's name: `GatedConcat`, of "prepare_gated_concat", in `ops/prepared/gated_concat/native.py` or `reference.py`.
    """
    module = select(op, backend, **call) or importlib.import_module(f"{_folder(op)}.reference")
    found: type[Any] = getattr(module, "".join(word.capitalize() for word in op.removeprefix("prepare_").split("_")))
    return found


def why_not(op: str, backend: str, **call: Any) -> str | None:
    """Why `backend` cannot serve this call of `op`, or None when it can."""
    if backend == "reference":
        return None
    unavailable = _unavailable(backend)
    if unavailable is not None:
        return unavailable
    if backend not in OPS[op]:
        return f"there is no {backend} kernel for it yet"
    obstacle = transforms.active() or transforms.replaced()
    if obstacle is not None:
        return f"{obstacle} is at work, which kernels cannot see through; {transforms.REMEDY}"
    reason: str | None = _kernels(op, backend).why_not(**call)
    return reason


@constant  # torch.compile cannot trace the tables; they do not change
def _best(op: str, key: str, device: torch.device, able: str) -> str:
    """See `choices.best`; the names in one string, because torch.compile takes no list for a constant."""
    return choices.best(op, key, device, able.split())


_HAS_TRITON = importlib.util.find_spec("triton") is not None  # once: torch.compile of PyTorch 2.11 cannot trace the question


def _unavailable(backend: str) -> str | None:
    """Why nothing at all can run on this backend here, or None."""
    if backend == "native":
        return native.why_missing
    if backend == "triton" and not _HAS_TRITON:
        return "the package triton is not installed"
    return cuda.why_missing if backend == "cuda" else None


def kernels_on(op: str, backend: str, device: torch.device) -> ModuleType:
    """The kernel module of `backend`, for a call on `device` that was traced, maybe elsewhere.

    Raises:
        BackendError: the backend does not serve that type of device.
    """
    if device.type not in (*RUNS_ON[backend], "meta") and not (backend in EMULATED and device.type == "cpu"):
        raise BackendError(
            f"backend {backend!r} serves no {device.type} tensors, and this program was traced for it: trace or export the "
            f'model again on {device.type}, or within use_backend("reference"), whose program runs on every device'
        )
    return _kernels(op, backend)


_loaded = SimpleNamespace()  # modules by name: an attribute is looked up when torch.compile meets it, a dict was copied before


def _folder(op: str) -> str:
    """The package of the op."""
    kind = "prepared" if op.startswith("prepare_") else "functions"
    return f"hifuse_fast.ops.{kind}.{op.removeprefix('prepare_')}"


def _kernels(op: str, backend: str) -> ModuleType:
    _load(op, backend)
    module: ModuleType = getattr(_loaded, f"{op}_{backend}")
    return module


@constant  # torch.compile cannot trace an import, nor take a module for a constant
def _load(op: str, backend: str) -> bool:
    if not hasattr(_loaded, f"{op}_{backend}"):
        setattr(_loaded, f"{op}_{backend}", importlib.import_module(f"{_folder(op)}.{backend}"))
    return True
