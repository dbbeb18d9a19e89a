"""What the ops of the frozen network have in common: packed tensors, options, and the checks of a call.

A prepared op is a module over tensors that were packed once for its kernel. It runs forward only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from hifuse_fast.backends import transforms
from hifuse_fast.checks import check_dense

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
        algorithm = "direct" if options.get("input_scale") is None else "int8"
        return {**options, "algorithm": algorithm} if "algorithm" in options else options

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


def check_calls(op: PreparedOp, check: Callable[..., None], *functions: str) -> PreparedOp:
    """`op` as a user gets it: every call is checked before its forward. The frozen network's own calls are not.

    A call is refused where the op would give wrong numbers without a word: under a transform, for a tensor that requires a
    gradient, and for an `out` that shares memory with what is still read.

    Args:
        op: the op.
        check: called with the arguments of a call; it raises where one does not fit.
        functions: what computes the same in `hifuse_fast.ops`, and has gradients.
    """
    op.register_forward_pre_hook(_UserCall(check, functions), with_kwargs=True)
    return op


class _UserCall:
    """The hook of `check_calls`."""

    def __init__(self, check: Callable[..., None], functions: Sequence[str]) -> None:
        self._check = check
        self._remedy = "take " + " and ".join(f"hifuse_fast.ops.{name}" for name in functions)
        self._signature = inspect.signature(check)
        # Of linear, whose maps are any number, `out` has no place among the positional arguments.
        self._place = None if "maps" in self._signature.parameters else list(self._signature.parameters).index("out")

    def __call__(self, op: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        transform = transforms.active()
        if transform is not None:
            raise RuntimeError(f"a prepared op has no derivative and no batches of calls, under {transform}: {self._remedy}")
        if torch.is_grad_enabled() and any(x.requires_grad for x in _tensors((*args, *named.values()))):
            raise RuntimeError(
                f"{self._first_that_requires_a_gradient(args, named)} requires a gradient, and a prepared op gives none: "
                f"{self._remedy}, or call the op under torch.no_grad()"
            )
        self._check(*args, **named)
        out = named.get("out")
        if self._place is not None and self._place < len(args):
            out = args[self._place]
        # A call that is traced has no addresses.
        if out is None or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return
        memory = [_memory(x) for x in (*_tensors((*args, *named.values())), *_tensors(op._buffers.values()))]
        for first, end in map(_memory, _tensors((out,))):
            # Its own memory is among all of it.
            if sum(first < stop and begin < end for begin, stop in memory) > 1:
                self._refuse_overlap(op, args, named)

    def _first_that_requires_a_gradient(self, args: tuple[Any, ...], named: dict[str, Any]) -> str:
        return next(name for name, x in self._by_name(args, named) if x.requires_grad)

    def _refuse_overlap(self, op: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = list(self._by_name(args, named))
        packed = [(f"the op's {name}", x) for name, x in op._buffers.items() if x is not None]
        for i, (name, out) in enumerate(given):
            first, end = _memory(out)
            for other, x in (*given[:i], *given[i + 1 :], *packed):
                begin, stop = _memory(x)
                if name.startswith("out") and first < stop and begin < end:
                    raise ValueError(f"{name} must not share memory with {other}, got tensors that overlap")

    def _by_name(self, args: tuple[Any, ...], named: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of a call, and how its errors name them."""
        for name, value in self._signature.bind(*args, **named).arguments.items():
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, (tuple, list)):
                yield from ((f"{name}[{i}]", x) for i, x in enumerate(value) if isinstance(x, Tensor))


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among values, and in tuples and lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _memory(x: Tensor) -> tuple[int, int]:
    """The addresses of the first byte and of the one after the last; equal for no elements, and where there is no memory."""
    first, count = x.data_ptr(), x.numel()
    if first == 0 or count == 0:
        return first, first
    if not x.is_contiguous():  # images alone
        count = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return first, first + count * x.element_size()


def check_operand(name: str, x: Any, shape: Sequence[int | None], like: Tensor) -> None:
    """Raise unless `x` is a contiguous map of this shape, None standing for any size, and of the dtype and device of `like`."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    check_dense(name, x)
    fits = x.dim() == 4 and all(size is None or size == actual for size, actual in zip(shape, x.shape, strict=True))
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
