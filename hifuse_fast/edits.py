"""What a user changed on a network since it was made.

A frozen network and an export stand for the forwards of modules that they never call. So each of these modules must be what a
new `HiFuse` of the same options has in its place: of that class, with the methods of that class, and without hooks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_state

from hifuse_fast.backends import transforms
from hifuse_fast.checkpoints.wrappers import find_networks, is_transparent, uncompiled, wrappers_of
from hifuse_fast.layers import BatchNorm2d, DropPath, LayerNorm, is_patched
from hifuse_fast.model import HiFuse, HiFuseFeatures
from hifuse_fast.options import HiFuseOptions

# What may stand in the place of a class, because it computes the same in eval mode.
_AS_GOOD: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    BatchNorm2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    LayerNorm: (nn.LayerNorm,),
    nn.LayerNorm: (LayerNorm,),
    nn.Dropout: (nn.Identity,),
    DropPath: (nn.Identity,),
}
# What leads to a result, of any module; and methods of a network that do not.
_CALL = {"forward", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward", "__getattr__", "__getattribute__"}
_NO_CALL = {"get_classifier", "reset_classifier", "set_grad_checkpointing", "reset_parameters", "extra_repr"}
_HOOKS = {
    "_forward_pre_hooks": "forward pre-hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward pre-hook",
    "_backward_hooks": "backward hook",
}
# Modules that no forward calls: for the official state_dict alone, or for the classifier of a backbone.
_UNUSED = r"norm|head|layers\d\.blocks\.\d+\.norm2|fu1\.(Updim|norm1|W3)|fu[2-4]\.(norm2|W)"


def network_of(model: nn.Module) -> nn.Module:
    """The network that `model` is, or only passes its input to; `model` itself where there is none.

    Raises:
        ValueError: several networks, or a wrapper that may do more; the message names it.
    """
    found = find_networks(model)
    if len(found) > 1 and "" not in found:
        raise ValueError(f"model must be one network, got a {type(model).__name__} with {', '.join(found)}: take one of them")
    if not found or "" in found:
        return model
    ((name, network),) = found.items()
    for wrapper in wrappers_of(model, name):
        hook = _hook(vars(wrapper))
        if hook is not None:
            raise ValueError(f"model is a {type(wrapper).__name__} around a network, and has {hook}: take model.{name}")
        if not is_transparent(wrapper):
            raise ValueError(
                f"model is a {type(wrapper).__name__} around a network, and has a forward of its own, which would be left out:"
                f" take the network alone, model.{name}"
            )
    return network


def check_eval(network: nn.Module) -> None:
    """Raise ValueError unless all modules are in eval mode."""
    training = next((name for name, module in network.named_modules() if module.training), None)
    if training is not None:
        where = f"its {training} is" if training else "it is"
        raise ValueError(f"model must be in eval mode, {where} in training mode: call model.eval() first")


@functools.lru_cache(4)
def new_network(cls: type[HiFuse], options: HiFuseOptions) -> HiFuse:
    """A new network without memory. It takes longer than all else that is read, and is only looked at."""
    with torch.device("meta"):
        return cls(**options.to_dict())


def tree(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, one that has two names twice."""
    yield name, module
    for key, child in module._modules.items():
        if child is not None:
            yield from tree(uncompiled(child), f"{name}.{key}" if name else key)


def is_used(expected: HiFuse, called: Sequence[str] = ()) -> Callable[[str], Any]:
    """Says of a module's name whether a forward of `expected` runs it, and it is not within a child that `called` names."""
    backbone = ["conv_norm", "conv_head"] if isinstance(expected, HiFuseFeatures) else []
    return re.compile(rf"(?!({'|'.join([_UNUSED, *backbone, *called])})(\.|$))").match


def edits(network: nn.Module, expected: HiFuse, called: Sequence[str] = ()) -> Iterator[str]:
    """In what `network` differs from `expected`, a new network of its options: reasons that begin with a module's name.

    Values of attributes and weights are not compared. A network that is no `HiFuse` is known by the official names; its own
    classes of blocks and layer norms are taken for the official ones. `called` names children that may be anything, because
    whoever asks calls them as they are.
    """
    used, foreign, found = is_used(expected, called), not isinstance(network, HiFuse), dict(tree(network))
    hook = _hook(vars(module_state), "_global")
    if hook is not None:
        yield f"all modules have {hook}"
    replaced = transforms.replaced()
    if replaced is not None:
        yield f"{replaced} is at work, which would not be called"
    for name, module in found.items():
        hook = _hook(vars(module)) if used(name) else None
        if hook is not None:
            yield f"{name or 'it'} has {hook}"
    for name, module in tree(expected):
        if used(name) and name in found:
            reason = _why_another(module, found[name], foreign)
            if reason is not None:
                yield f"{name or 'it'} {reason}"
        elif used(name) and not foreign:
            yield f"{name} is gone"


def _hook(attributes: dict[str, Any], prefix: str = "") -> str | None:
    """What hangs on a module of these attributes, a hook or a parametrisation."""
    parametrised = attributes.get("_modules", {}).get("parametrizations")
    if parametrised is not None:
        names = ", ".join(parametrised._modules)
        return f"a parametrization of {names}, which torch.nn.utils.parametrize.remove_parametrizations makes a plain weight"
    for table, kind in _HOOKS.items():
        for hook in attributes[prefix + table].values():
            return f"a {kind}, {_name_of(hook)}, which would not be called"
    return None


def _why_another(expected: nn.Module, actual: nn.Module, foreign: bool) -> str | None:
    """Why `actual` may compute something else than `expected` with the same weights: what follows its name in a sentence."""
    cls, base = type(actual), type(expected)
    known = stands_for(expected, actual, foreign)
    if known is None and (not foreign or isinstance(expected, (nn.Linear, nn.Conv2d, nn.BatchNorm2d))):
        return f"is a {_name_of(cls)}, where HiFuse has a {_name_of(base)}"
    if is_patched(known or base):
        return f"has a forward that was put on its class, {_name_of(known or base)}: put the original one back"
    own = [key for part in cls.__mro__ if part not in known.__mro__ for key in vars(part)] if known is not None else []
    names = _methods(known or nn.Module) | {*expected._parameters, *expected._buffers}
    for key in (*own, *vars(actual)):
        if key in names:
            whose = "set on the instance" if key in vars(actual) else f"of {_name_of(cls)}"
            return f"has a {key} of its own, {whose}, where HiFuse has that of {_name_of(base)}"
    children = list(actual._modules)
    if isinstance(expected, (nn.Sequential, nn.ModuleList)) and children != list(expected._modules):
        return f"must have the modules {list(expected._modules)}, got {children}"
    for key, child in actual._modules.items():  # children that no forward knows have no effect
        if child is not None and vars(expected).get(key, child) is None:
            return f"has a {_name_of(type(child))} for its {key}, where HiFuse has None"
    return None


def stands_for(expected: nn.Module, actual: nn.Module, foreign: bool) -> type[nn.Module] | None:
    """The class by which `actual` does for `expected`, or None; `foreign` says that its network is no HiFuse."""
    base = type(expected)
    allowed = (base, *_AS_GOOD.get(base, ()))
    if foreign:
        allowed += tuple(each for each in base.__mro__ if each.__module__.startswith("torch.nn.") and each is not nn.Module)
    return next((each for each in allowed if isinstance(actual, each)), None)


def _methods(cls: type[nn.Module]) -> set[str]:
    """The names of what a call of a module may run."""
    parts = [part for part in cls.__mro__ if part not in nn.Module.__mro__]
    own = {key for part in parts for key, value in vars(part).items() if callable(value) or isinstance(value, property)}
    return {key for key in own if not key.startswith("__")} - _NO_CALL | _CALL


def _name_of(what: Any) -> str:
    """A class, or what a hook is."""
    named = what if hasattr(what, "__qualname__") else type(what)
    return f"{named.__module__}.{named.__qualname__}"
