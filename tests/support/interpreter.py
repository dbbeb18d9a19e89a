"""Triton's interpreter as tests need it: it rounds as a GPU does, and does not make the same things again at every operation.

Without the second, most of the tests' time would go there, and little of it to numbers.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from triton import language as tl
from triton._utils import validate_block_shape
from triton.runtime import interpreter


def adapt() -> None:
    """Change the interpreter of this process; to be called once, before a kernel runs."""
    interpreter._convert_float = _rounding(interpreter._convert_float)
    interpreter.InterpreterBuilder.create_fma = _fused
    interpreter._patch_lang = _once_a_module(interpreter._patch_lang)
    interpreter._get_np_dtype = _once_a_dtype(interpreter._get_np_dtype)
    # Integers are added and multiplied twice, for an assertion that is off without `debug`: a third of the time.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=builder.options.debug)
    tl.core.block_type.__init__, tl.core.tensor.__init__ = _init_block_type, _init_tensor


def _rounding(convert: Callable[..., Any]) -> Callable[..., Any]:
    """The cast from float32 to bfloat16 rounds to the nearest, as a GPU and PyTorch do: the interpreter's truncates."""

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        return torch.tensor(values).bfloat16().view(torch.uint16).numpy()

    return rounded


def _fused(_: Any, x: Any, y: Any, z: Any) -> Any:
    """x y + z is rounded once: the interpreter rounds the product too."""
    wide = x.data.astype(np.float64) * y.data + z.data
    return interpreter.TensorHandle(wide.astype(z.data.dtype), z.dtype.scalar)


def _once_a_module(patch: Callable[..., Any]) -> Callable[..., Any]:
    """triton.language is made ready for the functions of a module once, and left so: not for every launch and every call."""
    ready: set[int] = set()

    def patch_lang(function: Any) -> Any:
        module = id(function.__globals__)
        if module not in ready:
            ready.add(module)
            patch(function)
        return interpreter._LangPatchScope()  # which has nothing to restore

    return patch_lang


def _once_a_dtype(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """NumPy's dtype of a Triton dtype, from a table that is made once."""
    found = functools.cache(find)

    def numpy_dtype(dtype: Any) -> Any:
        scalar = dtype.element_ty if isinstance(dtype, tl.core.block_type) else dtype
        return find(scalar) if isinstance(scalar, tl.pointer_type) else found(scalar)

    return numpy_dtype


@functools.cache
def _shape(sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """A shape as tensors have it, and its number of elements: shared by all tensors of that shape."""
    return tl.core.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(math.prod(sizes))


@functools.cache
def _block_shape(sizes: tuple[int, ...]) -> tuple[Any, int, str]:
    """A shape as types of blocks have it, its number of elements, and its name."""
    shape = tl.core.tuple(sizes)
    return shape, validate_block_shape(shape), str(shape)


def _init_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    """As the initialiser of a type of blocks, which has a shape of one dimension at least."""
    sizes = tuple(size.value if isinstance(size, tl.constexpr) else size for size in shape)
    if not sizes:
        raise TypeError("0d block_type is forbidden")
    self.element_ty = element_ty
    self.shape, self.numel, name = _block_shape(sizes)
    self.name = f"<{name}, {element_ty}>"


def _init_tensor(self: Any, handle: Any, type: Any) -> None:
    """As the initialiser of a tensor."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _shape(tuple(type.shape) if type.is_block() else ())
