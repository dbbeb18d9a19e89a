"""What the ops of the frozen network have in common: packed tensors, options, and the checks of a call.

A prepared op is a module over tensors that were packed once for its kernel. It runs forward only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Layout = dict[str, tuple[tuple[int, ...], torch.dtype]]  # of packed tensors, by name
ANY_SIZE = (None, None, None)  # of batch, height and width


class PreparedOp(nn.Module):
    """An op over packed tensors: `Class(tensors, **options)`, or of plain ones `Class.prepare(tensors, dtype, **options)`.

    The tensors are buffers that no state_dict shows. A class lies in `ops/prepared/<op>/<backend>.py`; the references pack by
    `pack` as it is here, the kernels by their own.
    """

    def __init_subclass__(cls) -> None:
        # Annotated tensors are read from the buffers at once: nn.Module looks elsewhere first, at a microsecond each.
        for name, kind in cls.__annotations__.items():
            if kind == "Tensor":
                setattr(cls, name, _buffer(name))

    def __init__(self, tensors: Mapping[str, Tensor], **options: Any) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)
        self.options = options
        self.eval()

    @classmethod
    @torch.no_grad()
    def prepare(cls, tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> PreparedOp:
        """The op over plain tensors, packed for maps of `dtype`; its options record the algorithm that was chosen."""
        options = cls.resolve(tensors, dtype, **options)
        return cls(cls.pack(tensors, dtype, **options), **options)

    @staticmethod
    def resolve(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Any]:
        """`options`, with the algorithm that the op will run in place of the one that was asked for."""
        return {**options, "algorithm": "direct"} if "algorithm" in options else options

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        """The packed tensors of plain ones, for options that are resolved: new memory, also where nothing changes."""
        # Cast in one step: to the layout first would copy a weight twice.
        return {
            name: tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
            for name, tensor in tensors.items()
        }

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        """The shapes and dtypes of what `pack` makes of plain tensors of these shapes; not of a native class.

        What a native class packs is known to the compiled library alone, which checks it at each call.
        """
        return {name: (shape, dtype) for name, shape in shapes.items()}

    def packed(self) -> dict[str, Tensor]:
        """The tensors that the op was made of."""
        return dict(self.named_buffers())

    @property
    def backend(self) -> str:
        """The name of the backend that packed the tensors and runs them."""
        return type(self).__module__.rpartition(".")[2]

    def extra_repr(self) -> str:
        return ", ".join([f"backend={self.backend}", *(f"{name}={value}" for name, value in self.options.items())])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_buffers", ()):  # calls that are repeated would go on with the old one
            raise AttributeError(f"a prepared op keeps its tensors, and {name} is one: write into it, or prepare the op again")
        super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PreparedOp:
        for name, tensor in self.named_buffers():
            moved = fn(tensor)
            if (moved.dtype, moved.device, moved.stride()) != (tensor.dtype, tensor.device, tensor.stride()):
                raise TypeError(
                    f"a prepared op keeps its dtype, device and layout, which its {name} was packed for: prepare it again"
                )
        super()._apply(fn, recurse)
        return self


def _buffer(name: str) -> property:
    def get(op: nn.Module) -> Tensor:
        try:
            return op._buffers[name]  # type: ignore[return-value]
        except KeyError:
            raise AttributeError(f"{type(op).__name__} has no {name} yet") from None

    return property(get)


def check_calls(op: PreparedOp, check: Callable[..., None]) -> PreparedOp:
    """`op`, with `check` called before its forward, with the same arguments: for what is handed to a user."""
    op.register_forward_pre_hook(partial(_run_check, check), with_kwargs=True)
    return op


def _run_check(check: Callable[..., None], op: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
    check(*args, **named)


def check_operand(name: str, x: Any, shape: Sequence[int | None], like: Tensor) -> None:
    """Raise unless `x` is a contiguous map of this shape, None standing for any size, and of the dtype and device of `like`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    fits = x.dim() == 4 and all(size in (None, actual) for size, actual in zip(shape, x.shape, strict=True))
    if not fits or 0 in x.shape[1:]:
        words = [letter if size is None else str(size) for letter, size in zip("BHWC", shape, strict=True)]
        raise ValueError(f"{name} must be [{', '.join(words)}] with H and W at least 1, got {list(x.shape)}")
    if x.dtype != like.dtype:
        raise TypeError(f"{name} must be {like.dtype} as the op was prepared for, got {x.dtype}")
    if x.device != like.device:
        raise ValueError(f"{name} must be on the op's device, {like.device}, got {x.device}")
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {list(x.stride())} for {list(x.shape)}")


def check_results(shape: Sequence[int], like: Tensor, **results: Any) -> None:
    """`check_operand` for what may be None and is of the shape of the result: residual, out."""
    for name, x in results.items():
        if x is not None:
            check_operand(name, x, shape, like)


def write(result: Tensor, out: Tensor | None) -> Tensor:
    """`result`, contiguous: in `out` where that is given."""
    return result.contiguous() if out is None else out.copy_(result)
