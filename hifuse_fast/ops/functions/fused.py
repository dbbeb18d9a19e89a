"""How kernels become a function of PyTorch: autograd, torch.compile, export. One mechanism for all ops and backends.

A backend's module of an op brings two functions and nothing else:

    forward(*tensors, keep, **options) -> (out, kept)
    backward(grad, *tensors, kept, needs, **options) -> [a gradient of each tensor, or None]

`kept` is a list of what the forward leaves for the backward beside its inputs, where `keep` asks for it. `needs` says for each
tensor whether its gradient is wanted.

There are two ways in. A plain eager call takes `_FusedOp`, an autograd.Function around the kernels, because an operator costs
far more. Whatever traces or watches operators (torch.compile, torch.export, make_fx, fake tensors, FlopCounterMode,
a tensor subclass) takes the operator `hifuse_fast::fused_<op>`, which carries its own gradients.

Kernels give first derivatives. The derivatives of these come from the definition, see `Fused.again`. Function transforms never
come here: `backends.select` leaves them to the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._ops import _len_torch_dispatch_stack_pre_dispatch

from hifuse_fast.backends import flops, transforms
from hifuse_fast.backends.select import autocast_dtype, kernels_on

Tensors = Sequence[Tensor | None]
Gradients = list[Tensor | None]

_LIBRARY = torch.library.Library("hifuse_fast", "FRAGMENT")
_PLAIN = Tensor.__torch_dispatch__


class Product(NamedTuple):
    """A product within an op: its multiplications and additions, and the places of the tensors that its two sides come from."""

    flops: int
    left: tuple[int, ...]
    right: tuple[int, ...]
    groups: int = 1  #: of a convolution; PyTorch counts the gradient of its filters as if there were one


class Fused:
    """An op as autograd sees it.

    Args:
        name: as in `backends.select.OPS`.
        tensors, options: arguments of the kernels, as in an operator's schema: "Tensor x, Tensor? bias", "float eps".
        definition: the op in plain PyTorch, `definition(*tensors, **options) -> Tensor`.
        added: the place of a tensor that is added to the result at last, and so has the result's gradient. -1 for none.
        products: `products(*tensors, **options)`, for FLOP counters.
    """

    def __init__(
        self,
        name: str,
        tensors: str,
        options: str,
        definition: Callable[..., Tensor],
        *,
        added: int = -1,
        products: Callable[..., list[Product]] | None = None,
    ) -> None:
        self.name, self.definition, self.added = name, definition, added
        self.count = len(tensors.split(","))
        self.options = [each.split()[-1] for each in options.split(",") if each.strip()]
        self.operator, self.backward_operator = _register(self, tensors, options)
        if products is not None:
            _register_flops(self, products)

    def __call__(self, kernels: ModuleType, tensors: Tensors, options: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
        """The result, and what the kernels kept; `kernels` is a module of the op's folder that serves this call."""
        grads = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        if not _is_plain(tensors):
            out, kept = self.operator(*tensors, **options, backend=kernels.__name__.rpartition(".")[2], keep=grads)
            return out, kept
        if grads:
            out, *kept = _FusedOp.apply(self, kernels, options, *tensors)
            return out, kept
        found: tuple[Tensor, Sequence[Tensor]] = kernels.forward(*tensors, keep=False, **options)
        return found

    def to_save(self, tensors: Tensors) -> Tensors:
        """Of the tensors those that the backward reads."""
        return [None if place == self.added else t for place, t in enumerate(tensors)]

    def added_dtype(self, tensors: Tensors) -> torch.dtype | None:
        """The dtype of the tensor that is added at last, None where there is none."""
        added = tensors[self.added] if self.added >= 0 else None
        return None if added is None else added.dtype

    def asked(self, needs: Sequence[bool]) -> list[bool]:
        """Of the gradients that are needed those that the kernels compute."""
        return [need and place != self.added for place, need in enumerate(needs)]

    def first(
        self,
        kernels: ModuleType,
        grad: Tensor,
        tensors: Tensors,
        kept: Tensors,
        needs: Sequence[bool],
        options: dict[str, Any],
    ) -> Gradients:
        """The gradients by the kernels, those alone that are needed, each in the dtype of its tensor."""
        found = kernels.backward(grad, *tensors, kept=kept, needs=needs, **options)
        return [
            each.to(t.dtype) if need and each is not None and t is not None else None
            for each, t, need in zip(found, tensors, needs, strict=True)
        ]

    def again(
        self, grad: Tensor, tensors: Tensors, needs: Sequence[bool], options: dict[str, Any], autocast: torch.dtype | None
    ) -> Gradients:
        """The gradients by the definition, as functions of `grad` and of the tensors, which may be differentiated again.

        The definition takes aliases of the tensors. One may depend on another, and each gradient is that of its own place
        alone; detached tensors would cut what comes of the gradients from the tensors.
        """
        create_graph = torch.is_grad_enabled()
        device = grad.device.type
        cast = contextlib.nullcontext() if autocast is None else torch.autocast(device, autocast)
        with torch.enable_grad(), cast:
            inputs = [t.view_as(t) if need and t is not None else t for t, need in zip(tensors, needs, strict=True)]
            out = self.definition(*inputs, **options)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need and t is not None]
        found = iter(torch.autograd.grad(out, wanted, grad.to(out.dtype), create_graph=create_graph, allow_unused=True))
        return [next(found) if need else None for need in needs]

    def once_more(
        self,
        grads: Tensors,
        grad: Tensor,
        tensors: Tensors,
        needs: Sequence[bool],
        options: dict[str, Any],
        autocast: torch.dtype | None,
    ) -> Gradients:
        """Of the gradients, whose gradients are `grads`, back to `grad` and the tensors: a second derivative."""
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            inputs = [t.view_as(t) if t is not None and t.requires_grad else t for t in (grad, *tensors)]
            firsts = self.again(inputs[0], inputs[1:], needs, options, autocast)  # type: ignore[arg-type]
        pairs = [(f, g) for f, g in zip(firsts, grads, strict=True) if f is not None and g is not None and f.requires_grad]
        wanted = [t for t in inputs if t is not None and t.requires_grad]
        if not pairs or not wanted:
            return [None] * len(inputs)
        outputs, into = zip(*pairs, strict=True)
        found = iter(torch.autograd.grad(outputs, wanted, into, create_graph=create_graph, allow_unused=True))
        return [next(found) if t is not None and t.requires_grad else None for t in inputs]


def _is_plain(tensors: Tensors) -> bool:
    """Whether nothing traces or watches this call, so that kernels may be called as they are."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or _len_torch_dispatch_stack_pre_dispatch():
        return False
    return all(t is None or type(t).__torch_dispatch__ is _PLAIN for t in tensors)


# ---- Eager -------------------------------------------------------------------------------------------------------------


class _FusedOp(torch.autograd.Function):
    """Saves the inputs, and what the kernels keep."""

    @staticmethod
    def forward(
        ctx: Any, fused: Fused, kernels: ModuleType, options: dict[str, Any], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        keep = any(fused.asked(ctx.needs_input_grad[3:]))
        out, kept = kernels.forward(*tensors, keep=keep, **options)
        ctx.fused, ctx.kernels, ctx.options = fused, kernels, options
        ctx.autocast = autocast_dtype(out.device)
        ctx.added = fused.added_dtype(tensors)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*fused.to_save(tensors), *kept)
        return (out, *kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        fused, needs = ctx.fused, ctx.needs_input_grad[3:]
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        asked = fused.asked(needs)
        saved = ctx.saved_tensors  # once: checkpointing computes them when they are read
        tensors, kept = saved[: fused.count], saved[fused.count :]
        found: Gradients = [None] * fused.count
        if any(asked):
            if transforms.active() or transforms.batched(grad):
                found = fused.again(grad, tensors, asked, ctx.options, ctx.autocast)
            elif torch.is_grad_enabled():
                found = list(_FusedOpGradients.apply(ctx, asked, grad, *tensors, *kept))
            else:
                found = fused.first(ctx.kernels, grad, tensors, kept, asked, ctx.options)
        if fused.added >= 0 and needs[fused.added]:
            found[fused.added] = grad.to(ctx.added)
        return (None, None, None, *found)


class _FusedOpGradients(torch.autograd.Function):
    """The kernels' backward, where its result may be differentiated again."""

    @staticmethod
    def forward(ctx: Any, of: Any, needs: list[bool], grad: Tensor, *saved: Tensor | None) -> tuple[Tensor | None, ...]:
        ctx.of, ctx.needs = of, needs
        tensors, kept = saved[: of.fused.count], saved[of.fused.count :]
        ctx.save_for_backward(grad, *tensors)
        ctx.set_materialize_grads(False)
        return tuple(of.fused.first(of.kernels, grad, tensors, kept, needs, of.options))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        grad, *tensors = ctx.saved_tensors
        of = ctx.of
        found = of.fused.once_more(grads, grad, tensors, ctx.needs, of.options, of.autocast)
        return (None, None, *found, *[None] * (len(ctx.needs_input_grad) - 2 - len(found)))


# ---- Operators ---------------------------------------------------------------------------------------------------------


def _register(fused: Fused, tensors: str, options: str) -> tuple[Any, Any]:
    """Define the operators of the forward and of the backward, with shapes and gradients."""
    name, count = f"fused_{fused.name}", fused.count
    more = f"{options}, " if options else ""
    _LIBRARY.define(f"{name}({tensors}, *, {more}str backend, bool keep) -> (Tensor, Tensor[])")
    saved = tensors.replace("Tensor ", "Tensor? ") if fused.added >= 0 else tensors
    _LIBRARY.define(f"{name}_backward(Tensor grad, {saved}, Tensor[] kept, bool[] needs, *, {more}str backend) -> Tensor[]")
    forward_op, backward_op = (getattr(torch.ops.hifuse_fast, each) for each in (name, f"{name}_backward"))

    def forward(*tensors: Tensor | None, backend: str, keep: bool, **options: Any) -> tuple[Tensor, list[Tensor]]:
        out, kept = kernels_on(fused.name, backend, _device(tensors)).forward(*tensors, keep=keep, **options)
        return out, list(kept)

    def backward(grad: Tensor, *rest: Any, backend: str, **options: Any) -> list[Tensor]:
        *tensors, kept, needs = rest
        found = fused.first(kernels_on(fused.name, backend, grad.device), grad, tensors, kept, needs, options)
        return [grad.new_empty(0) if each is None else each for each in found]

    def save(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        ctx.options = {key: keyword_only_inputs[key] for key in (*fused.options, "backend")}
        ctx.autocast, ctx.keep = autocast_dtype(_device(inputs)), keyword_only_inputs["keep"]
        ctx.added = fused.added_dtype(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*fused.to_save(inputs), *output[1])

    def differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:count]
        found: Gradients = [None] * count
        if grad is None:
            return tuple(found)
        asked, saved = fused.asked(needs), ctx.saved_tensors
        if transforms.active() or transforms.batched(grad):
            options = {key: ctx.options[key] for key in fused.options}
            found = fused.again(grad, saved[:count], asked, options, ctx.autocast)
        elif any(asked):
            tensors, kept = saved[:count], list(saved[count:])
            if not ctx.keep:  # traced where nobody asked for gradients, as an exported program often is
                with torch.no_grad():
                    _, kept = forward_op(*tensors, **ctx.options, keep=True)
            found = list(backward_op(grad, *tensors, kept, asked, **ctx.options))
        found = [each if need else None for each, need in zip(found, needs, strict=True)]
        if fused.added >= 0 and needs[fused.added]:
            found[fused.added] = grad.to(ctx.added)
        return tuple(found)

    def save_again(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        grad, *tensors, kept, needs = inputs
        ctx.options = {key: keyword_only_inputs[key] for key in fused.options}
        ctx.kept, ctx.needs, ctx.autocast = len(kept), needs, None
        ctx.save_for_backward(grad, *tensors)

    def differentiate_again(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
        grad, *tensors = ctx.saved_tensors
        into = [each if need else None for each, need in zip(grads, ctx.needs, strict=True)]
        found = fused.once_more(into, grad, tensors, ctx.needs, ctx.options, ctx.autocast)
        return (*found, [None] * ctx.kept, None)

    for op, run, setup, formula in (
        (name, forward, save, differentiate),
        (f"{name}_backward", backward, save_again, differentiate_again),
    ):
        _LIBRARY.impl(op, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"hifuse_fast::{op}", partial(_fake, run), lib=_LIBRARY)
        torch.library.register_autograd(f"hifuse_fast::{op}", formula, setup_context=setup, lib=_LIBRARY)
    return forward_op, backward_op


def _fake(run: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """`run` on tensors without data.

    Launchers ask how large a map is, to choose tiles and scratch memory, which no result has the shape of. So the answers shall
    not bind what is traced to the size at hand.
    """
    mode = detect_fake_mode(args)
    env = None if mode is None else mode.shape_env
    with contextlib.nullcontext() if env is None else env.suppress_guards():
        return run(*args, **named)


def _device(tensors: Sequence[Any]) -> torch.device:
    device: torch.device = next(t for t in tensors if t is not None).device
    return device


def _register_flops(fused: Fused, products: Callable[..., list[Product]]) -> None:
    """Tell FLOP counters what the definition costs: a product once forward, and once for each side whose gradient is needed."""

    def forward(*args: Any, backend: str, keep: bool, out_val: Any = None, **options: Any) -> int:
        return sum(product.flops for product in products(*args, **options))

    def backward(grad: Tensor, *args: Any, backend: str, out_val: Any = None, **options: Any) -> int:
        *tensors, _, needs = args
        found = products(*tensors, **options)
        sides = [(p.flops, p.left) for p in found] + [(p.flops * p.groups, p.right) for p in found]
        return sum(count for count, side in sides if any(needs[place] for place in side))

    for operator, formula in ((fused.operator, forward), (fused.backward_operator, backward)):
        flops.register(operator, formula)
