"""How kernels become a function of PyTorch: autograd, torch.compile, export. One mechanism for all ops and backends.

A backend's module of an op brings two functions:

    forward(*tensors, keep, **options) -> (out, kept)
    backward(grad, *tensors, kept, needs, **options) -> [a gradient of each tensor, or None]

A module may also bring `shapes`, of the arguments and the results of `forward`: tensors of the right sizes, for graphs that are
traced without data. Where it has none, its forward runs on tensors without data.

`keep` says whether a backward may follow, and `kept` is a list of what the forward leaves for it beside the inputs. `needs`
says for each tensor whether its gradient is wanted; what stands in the other places does not matter. Autograd casts each
gradient to the dtype of its tensor.

There are two ways in. A plain eager call takes `_FusedOp`, an autograd.Function around the kernels, because an operator costs
far more. Whatever traces or watches operators (torch.compile, torch.export, make_fx, fake tensors, FlopCounterMode,
a tensor subclass) takes the operator `hifuse_fast::fused_<op>`. Both ways differentiate by `Fused.gradients`.

Kernels give first derivatives. The derivatives of these come from the definition: the operator of the backward,
`hifuse_fast::fused_<op>_backward`, has them as its own gradients. Function transforms never come here: `backends.select`
leaves them to the reference.
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

from hifuse_fast.backends import flops, transforms
from hifuse_fast.backends.select import autocast_dtype, kernels_on

Tensors = Sequence[Tensor | None]
Gradients = list[Tensor | None]

_LIBRARY = torch.library.Library("hifuse_fast", "FRAGMENT")


class Product(NamedTuple):
    """A product within an op: its multiplications and additions, and the places of the tensors that its two sides come from."""

    flops: int
    left: tuple[int, ...]
    right: tuple[int, ...]
    groups: int = 1  #: of a convolution; PyTorch counts the gradient of its filters as if there were one


class _Call(NamedTuple):
    """What a backward must know of a call beside its tensors."""

    fused: Fused
    kernels: ModuleType
    options: dict[str, Any]
    autocast: torch.dtype | None  #: that the definition was called under
    keep: bool  #: whether the forward kept what the backward needs


class Fused:
    """An op as autograd sees it.

    Args:
        name: as in `backends.select.OPS`.
        tensors, options: arguments of the kernels, as in an operator's schema: "Tensor x, Tensor? bias", "float eps". The
            first tensor is never None.
        definition: the op in plain PyTorch, `definition(*tensors, **options) -> Tensor`.
        added: the place of a tensor that is added to the result at last. Its gradient is that of the result, and the kernels
            get None for it in their backward. -1 for none.
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
        named = f"{options}, str backend, ScalarType? autocast".removeprefix(", ")
        self.operator = _forward_operator(self, tensors, named)
        self.backward_operator = _backward_operator(self, tensors, named)
        if products is not None:
            _register_flops(self, products)

    def __call__(self, kernels: ModuleType, tensors: Tensors, options: dict[str, Any]) -> tuple[Tensor, Sequence[Tensor]]:
        """The result, and what the kernels kept; `kernels` is a module of the op's folder that serves this call."""
        if not _is_plain(tensors):
            keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
            call = _Call(self, kernels, options, _autocast_of(tensors), keep)
            out, kept = self.operator(*tensors, **_named(call), keep=keep)
            return out, kept
        if not torch.is_grad_enabled() or not torch._C._any_requires_grad(*tensors):
            found: tuple[Tensor, Sequence[Tensor]] = kernels.forward(*tensors, keep=False, **options)
            return found
        autocast = _autocast_of(tensors) if torch._C._is_any_autocast_enabled() else None
        out, *kept = _FusedOp.apply(_Call(self, kernels, options, autocast, keep=True), *tensors)
        return out, kept

    def save(self, ctx: Any, call: _Call, tensors: Tensors, kept: Tensors) -> None:
        """Leave in `ctx` what `gradients` needs."""
        ctx.call = call
        ctx.set_materialize_grads(False)
        if self.added >= 0:
            tensors = (*tensors[: self.added], None, *tensors[self.added + 1 :])
        ctx.save_for_backward(*tensors, *kept)

    def gradients(self, ctx: Any, grad: Tensor | None, needs: Sequence[bool]) -> Gradients:
        """The gradients of the tensors of a call, each where it is needed, of the gradient of its result."""
        found: Gradients = [None] * self.count
        if grad is None:
            return found
        asked = [need and place != self.added for place, need in enumerate(needs)]
        if any(asked):
            saved = ctx.saved_tensors  # once: checkpointing computes them when they are read
            computed = self._differentiate(ctx.call, grad, saved[: self.count], saved[self.count :], asked)
            found = [each if ask else None for each, ask in zip(computed, asked, strict=True)]
        if self.added >= 0 and needs[self.added]:
            found[self.added] = grad
        return found

    def _differentiate(self, call: _Call, grad: Tensor, tensors: Tensors, kept: Tensors, needs: Sequence[bool]) -> Tensors:
        """The gradients of the tensors that are needed, and anything for the others."""
        if transforms.active() or transforms.batched(grad):
            return self.by_definition(call, grad, tensors, needs)
        if not call.keep:  # traced where nobody asked for gradients, as an exported program often is
            with torch.no_grad():
                kept = self.operator(*tensors, **_named(call), keep=True)[1]
        found: Tensors
        if torch.is_grad_enabled() or not _is_plain((grad, *tensors)):
            found = self.backward_operator(grad, *tensors, kept, needs, **_named(call))
        else:
            found = call.kernels.backward(grad, *tensors, kept=kept, needs=needs, **call.options)
        return found

    def by_definition(self, call: _Call, grad: Tensor, tensors: Tensors, needs: Sequence[bool]) -> Gradients:
        """The gradients by the definition, as functions of `grad` and of the tensors, which may be differentiated again.

        The definition takes aliases of the tensors. One may depend on another, and each gradient is that of its own place
        alone; detached tensors would cut what comes of the gradients from the tensors.
        """
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad(), _autocast(grad.device.type, call.autocast):
            inputs = _aliases(tensors, needs)
            out = self.definition(*inputs, **call.options)
        return _grad([out], inputs, needs, [grad.to(out.dtype)], create_graph)

    def of_gradients(self, call: _Call, grads: Tensors, grad: Tensor, tensors: Tensors, needs: Sequence[bool]) -> Gradients:
        """The gradients of `grad` and of the tensors, of those of `by_definition`, which are `grads`: second derivatives."""
        create_graph = torch.is_grad_enabled()
        again = [t is not None and t.requires_grad for t in (grad, *tensors)]
        with torch.enable_grad():
            inputs = _aliases((grad, *tensors), again)
            firsts = self.by_definition(call, inputs[0], inputs[1:], needs)  # type: ignore[arg-type]
        pairs = [(f, g) for f, g in zip(firsts, grads, strict=True) if f is not None and g is not None and f.requires_grad]
        if not pairs or not any(again):
            return [None] * len(inputs)
        outputs, into = zip(*pairs, strict=True)
        return _grad(outputs, inputs, again, into, create_graph)


def _autocast(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Autocast as it was in the forward, whatever it is now."""
    if dtype is None and not torch._C._is_any_autocast_enabled():
        return contextlib.nullcontext()
    return torch.autocast(device, dtype, enabled=dtype is not None)


def _aliases(tensors: Tensors, wanted: Sequence[bool]) -> Tensors:
    """The tensors, with an alias in the place of each that is wanted."""
    return [t.view_as(t) if want and t is not None else t for t, want in zip(tensors, wanted, strict=True)]


def _grad(outputs: Sequence[Tensor], inputs: Tensors, wanted: Sequence[bool], into: Sequence[Tensor], again: bool) -> Gradients:
    """`autograd.grad` of those inputs that are wanted, and None in the places of the others."""
    chosen = [t for t, want in zip(inputs, wanted, strict=True) if want and t is not None]
    found = iter(torch.autograd.grad(outputs, chosen, into, create_graph=again, allow_unused=True))
    return [next(found) if want else None for want in wanted]


_PLAIN_TYPES = {Tensor, torch.nn.Parameter, type(None)}
_BEFORE_DISPATCH = torch._C.DispatchKey.PreDispatch  # of make_fx(pre_dispatch=True), whose modes have a stack of their own


def _is_plain(tensors: Tensors) -> bool:
    """Whether nothing traces or watches this call, so that kernels may be called as they are."""
    if (
        torch.compiler.is_dynamo_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._dispatch_tls_is_dispatch_key_included(_BEFORE_DISPATCH)
    ):
        return False
    if _PLAIN_TYPES.issuperset(map(type, tensors)):  # nearly always, and many times as fast
        return True
    return all(t is None or type(t).__torch_dispatch__ is Tensor.__torch_dispatch__ for t in tensors)


def _autocast_of(tensors: Tensors) -> torch.dtype | None:
    return autocast_dtype(tensors[0])  # type: ignore[arg-type]


def _device(tensors: Tensors) -> torch.device:
    device: torch.device = tensors[0].device  # type: ignore[union-attr]
    return device


# ---- Eager -------------------------------------------------------------------------------------------------------------


class _FusedOp(torch.autograd.Function):
    """The kernels as they are. Saves the inputs, and what the kernels keep."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        out, kept = call.kernels.forward(*tensors, keep=True, **call.options)
        if kept:
            ctx.mark_non_differentiable(*kept)
        call.fused.save(ctx, call, tensors, kept)
        return (out, *kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
        return (None, *ctx.call.fused.gradients(ctx, grad, ctx.needs_input_grad[1:]))


# ---- Operators ---------------------------------------------------------------------------------------------------------


def _named(call: _Call) -> dict[str, Any]:
    """The arguments of a call's operators that have names."""
    return {**call.options, "backend": call.kernels.__name__.rpartition(".")[2], "autocast": call.autocast}


def _call_of(fused: Fused, device: torch.device, options: dict[str, Any], keep: bool) -> _Call:
    """The call whose operators were given these `options`."""
    options = dict(options)
    backend, autocast = options.pop("backend"), options.pop("autocast")
    return _Call(fused, kernels_on(fused.name, backend, device), options, autocast, keep)


def _forward_operator(fused: Fused, tensors: str, options: str) -> Any:
    """`hifuse_fast::fused_<op>`: the result, and what the backward needs beside the tensors."""

    def run(*tensors: Tensor | None, keep: bool, **options: Any) -> tuple[Tensor, list[Tensor]]:
        call = _call_of(fused, _device(tensors), options, keep)
        out, kept = call.kernels.forward(*tensors, keep=keep, **call.options)
        return out, list(kept)

    def fake(*tensors: Tensor | None, keep: bool, **options: Any) -> tuple[Tensor, list[Tensor]]:
        call = _call_of(fused, _device(tensors), options, keep)
        shapes = getattr(call.kernels, "shapes", None) or call.kernels.forward
        out, kept = shapes(*tensors, keep=keep, **call.options)
        return out, list(kept)

    def save(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        options = dict(keyword_only_inputs)
        keep = options.pop("keep")
        fused.save(ctx, _call_of(fused, _device(inputs), options, keep), inputs, output[1])

    def differentiate(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        return tuple(fused.gradients(ctx, grad, ctx.needs_input_grad[: fused.count]))

    schema = f"({tensors}, *, {options}, bool keep) -> (Tensor, Tensor[])"
    return _register(f"fused_{fused.name}", schema, run, fake, save, differentiate)


def _backward_operator(fused: Fused, tensors: str, options: str) -> Any:
    """`hifuse_fast::fused_<op>_backward`: the gradients that are needed, and in the other places tensors without elements."""

    def run(grad: Tensor, *rest: Any, **options: Any) -> list[Tensor]:
        *tensors, kept, needs = rest
        call = _call_of(fused, grad.device, options, keep=True)
        found = call.kernels.backward(grad, *tensors, kept=kept, needs=needs, **call.options)
        return [each if need else grad.new_empty(0) for each, need in zip(found, needs, strict=True)]

    def save(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
        grad, *tensors, kept, needs = inputs
        ctx.call = _call_of(fused, grad.device, keyword_only_inputs, keep=True)
        ctx.kept, ctx.needs = len(kept), needs
        ctx.save_for_backward(grad, *tensors)

    def differentiate(ctx: Any, grads: Tensors) -> tuple[Any, ...]:
        grad, *tensors = ctx.saved_tensors
        wanted = [each if need else None for each, need in zip(grads, ctx.needs, strict=True)]
        return (*fused.of_gradients(ctx.call, wanted, grad, tensors, ctx.needs), [None] * ctx.kept, None)

    schema = f"(Tensor grad, {tensors}, Tensor[] kept, bool[] needs, *, {options}) -> Tensor[]"
    return _register(f"fused_{fused.name}_backward", schema, run, run, save, differentiate)


def _register(
    name: str,
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    save: Callable[..., None],
    differentiate: Callable[..., Any],
) -> Any:
    """The operator `name`: of `run` on every device, of `fake` for shapes alone, with the gradients of `differentiate`."""
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"hifuse_fast::{name}", partial(_fake, fake), lib=_LIBRARY)
    torch.library.register_autograd(f"hifuse_fast::{name}", differentiate, setup_context=save, lib=_LIBRARY)
    return getattr(torch.ops.hifuse_fast, name)


def _fake(run: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """`run` on tensors without data.

    Launchers ask how large a map is, to choose tiles and scratch memory, which no result has the shape of. So the answers shall
    not bind what is traced to the size at hand.
    """
    mode = detect_fake_mode(args)
    env = None if mode is None else mode.shape_env
    with contextlib.nullcontext() if env is None else env.suppress_guards():
        return run(*args, **named)


def _register_flops(fused: Fused, products: Callable[..., list[Product]]) -> None:
    """Tell FLOP counters what the definition costs: a product once forward, and once for each side whose gradient is needed."""

    def forward(*args: Any, backend: str, autocast: Any, keep: bool, out_val: Any = None, **options: Any) -> int:
        return sum(product.flops for product in products(*args, **options))

    def backward(grad: Tensor, *args: Any, backend: str, autocast: Any, out_val: Any = None, **options: Any) -> int:
        *tensors, _, needs = args
        found = products(*tensors, **options)
        sides = [(p.flops, p.left) for p in found] + [(p.flops * p.groups, p.right) for p in found]
        return sum(count for count, side in sides if any(needs[place] for place in side))

    for operator, formula in ((fused.operator, forward), (fused.backward_operator, backward)):
        flops.register(operator, formula)
