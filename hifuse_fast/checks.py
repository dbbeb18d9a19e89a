"""Checks of arguments: their errors name the argument, what it was and what was expected."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_integer(name: str, value: Any) -> int:
    """`value` as an int, also of numpy's or a symbolic kind; TypeError naming the argument for a bool, a float, ..."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def check_count(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """`value` as an int of at least `least` and at most `most`; TypeError or ValueError naming the argument otherwise."""
    count = check_integer(name, value)
    if count < least:
        raise ValueError(f"{name} must be at least {least}, got {count}")
    if most is not None and count > most:
        shown = count if count < 10**20 else f"a number of {count.bit_length()} bits"
        raise ValueError(f"{name} must be at most {most}, got {shown}")
    return count


def check_counts(name: str, values: Any, length: int, least: int = 1, most: int | None = None) -> tuple[int, ...]:
    """`values` as a tuple of `length` ints of at least `least` and at most `most`."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != length:
        raise ValueError(f"{name} must be {length} integers, got {values!r}")
    return tuple(check_count(f"{name}[{i}]", value, least, most) for i, value in enumerate(values))


def check_rate(name: str, value: Any) -> float:
    """`value` as a probability in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")
    return float(value)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """`value` if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """`value` if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_heads(name: str, num_heads: int, dim: int) -> None:
    """Raise ValueError unless `num_heads` divides `dim`."""
    if dim % num_heads:
        raise ValueError(f"{name} must divide the width {dim}, got {num_heads}")


def hint(x: Any) -> str:
    """What to do, for a message about something that is no tensor."""
    if isinstance(x, torch.fx.Proxy):
        return ": torch.fx.symbolic_trace cannot follow what depends on shapes, torch.export.export gives a graph"
    return ""


_REFUSED = {
    "MaskedTensor": "a MaskedTensor, whose mask has no meaning to a network: fill in what is masked, or call get_data()",
    "DTensor": "a DTensor: share work by DistributedDataParallel or fully_shard, or call to_local() or full_tensor()",
}


def check_dense(name: str, x: Tensor) -> None:
    """Raise TypeError for a sparse, nested, masked or distributed tensor."""
    if type(x).__name__ in _REFUSED:
        raise TypeError(f"{name} must be a plain tensor, got {_REFUSED[type(x).__name__]}")
    if x.is_nested:
        raise TypeError(f"{name} must be one dense tensor, got a nested one: pad its parts to one size, or pass each alone")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {x.layout}: call to_dense() first")


def check_images(images: Any, in_chans: int) -> None:
    """Raise unless `images` is a dense tensor [B, in_chans, H, W] with at least one pixel."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}{hint(images)}")
    check_dense("images", images)
    if images.dim() != 4 or images.size(1) != in_chans or (images.numel() == 0 and 0 in images.shape[2:]):
        shape = list(images.shape)
        raise ValueError(f"images must be [B, {in_chans}, H, W] with H and W at least 1, got {shape}")


def check_map(name: str, x: Any, dim: int | None = None) -> None:
    """Raise unless `x` is a floating tensor [B, H, W, dim] with at least one token; None stands for any width."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}{hint(x)}")
    check_dense(name, x)
    # Not `in (None, ...)`: torch.compile compares no unknown size there. Of unknown sizes it is slow to ask for, so the width
    # is asked for alone (`x.size(3)`, not `x.shape[3]`), here and in the ops.
    if x.dim() != 4 or (dim is not None and x.size(3) != dim) or (x.numel() == 0 and 0 in x.shape[1:]):
        width = "C" if dim is None else dim
        raise ValueError(f"{name} must be [B, H, W, {width}] with H, W and {width} at least 1, got {list(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {x.dtype}")


def check_dtype(name: str, dtype: Any, choices: Sequence[torch.dtype]) -> torch.dtype:
    """`dtype` if it is one of `choices`."""
    if not isinstance(dtype, torch.dtype) or dtype not in choices:
        raise TypeError(f"{name} must be one of {', '.join(map(str, choices))}, got {dtype!r}")
    return dtype


def check_weights(**weights: tuple[Any, str]) -> dict[str, int]:
    """Raise unless each is a floating tensor of its shape, all on one device; return what the letters stand for.

    A shape is words: a number, a letter for a size of at least 1, or a multiple of a letter seen before, as in "2 C 3C".
    """
    sizes: dict[str, int] = {}
    device = None
    for name, (weight, shape) in weights.items():
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(weight).__name__}")
        check_dense(name, weight)
        words = shape.split()
        if weight.dim() == len(words):
            sizes |= {word: n for word, n in zip(words, weight.shape, strict=True) if word.isalpha() and word not in sizes}
        expected = [_size_of(word, sizes) for word in words]
        if list(weight.shape) != expected or 0 in expected:
            known = f" = {expected}" if sizes and None not in expected else ""
            raise ValueError(f"{name} must be [{', '.join(words)}]{known}, got {list(weight.shape)}")
        if not weight.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {weight.dtype}")
        if device is not None and weight.device != device:
            raise ValueError(f"{name} must be on the device of the other weights, {device}, got {weight.device}")
        device = weight.device
    return sizes


AUTOCAST = (torch.float32, torch.bfloat16, torch.float16)  #: the dtypes that autocast casts


def check_parameter(
    name: str, value: Any, shape: Sequence[int], like: Tensor, dtypes: Sequence[torch.dtype] | None = None
) -> None:
    """Raise unless `value` is a tensor of `shape` on the device of `like`, of one of `dtypes`.

    Where those are not given: of the dtype of `like`, or float32 (as under autocast).
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    check_dense(name, value)
    if list(value.shape) != list(shape):
        raise ValueError(f"{name} must be {list(shape)}, got {list(value.shape)}")
    if value.device != like.device:
        raise ValueError(f"{name} must be on the device of the map, {like.device}, got {value.device}")
    if value.dtype not in (dtypes or (like.dtype, torch.float32)):
        expected = f"{like.dtype} like the map, or float32" if dtypes is None else " or ".join(map(str, dtypes))
        raise TypeError(f"{name} must be {expected}, got {value.dtype}")


def check_one_dtype(**parameters: Tensor | None) -> None:
    """Raise TypeError unless the parameters of a norm are of one dtype, as PyTorch's norms ask outside of autocast on a GPU."""
    given = {name: each for name, each in parameters.items() if each is not None}
    first = next(iter(given), "")
    if not given or (given[first].is_cuda and torch.is_autocast_enabled("cuda")):
        return
    for name, each in given.items():
        if each.dtype != given[first].dtype:
            raise TypeError(f"{name} must be {given[first].dtype} like {first}, got {each.dtype}")


def check_eps(name: str, value: Any) -> float:
    """`value` as a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def _size_of(word: str, sizes: dict[str, int]) -> int | None:
    number, letter = word.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), word.lstrip("0123456789")
    if letter and letter not in sizes:
        return None
    return int(number or 1) * (sizes[letter] if letter else 1)
