"""Module by module: is a model what its options say? What differs is read, or refused by its name.

A frozen network stands for the forwards of modules that it never calls. So each of them must be what a new `HiFuse` of the same
options has in its place: of that class, without hooks, with the same attributes but for those that are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules import module as module_state

from hifuse_fast.checkpoints.wrappers import uncompiled
from hifuse_fast.layers import BatchNorm2d, DropPath, LayerNorm
from hifuse_fast.model import HiFuse, HiFuseFeatures

# What the attributes of modules are to a frozen network. All others must be as in a new network.
READ = ("eps", "shift_size", "channel_gate")  #: of each module on its own
WITHOUT_EFFECT = {
    *("training", "grad_checkpointing", "p", "inplace", "rate", "attn_drop", "momentum", "track_running_stats"),  # in eval mode
    *("affine", "elementwise_affine", "weight_shapes"),  # the weights tell
    *("options", "feature_info"),  # of the whole model, see source.py
}
_OF_EVERY_MODULE = set(vars(nn.Module()))

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


def check_hooks(module: nn.Module, place: str) -> None:
    """Raise ValueError where a hook hangs on the module that `place` names, or a parametrisation."""
    if "parametrizations" in module._modules:
        name = ", ".join(module._modules["parametrizations"]._modules)  # type: ignore[union-attr]
        raise ValueError(
            f"model cannot be frozen: {place} has a parametrization of {name}; make it a plain weight by"
            " torch.nn.utils.parametrize.remove_parametrizations"
        )
    for table, kind in _HOOKS.items():
        for hook in getattr(module, table).values():
            raise ValueError(
                f"model cannot be frozen: {place} has a {kind}, {_name_of(hook)}, which would not be called; remove it,"
                " or use the model as it is"
            )


def check_global_hooks() -> None:
    """Raise ValueError where a hook hangs on all modules."""
    for table, kind in _HOOKS.items():
        for hook in getattr(module_state, f"_global{table}").values():
            raise ValueError(
                f"model cannot be frozen: all modules have a {kind}, {_name_of(hook)}, which would not be called;"
                " remove it, or use the model as it is"
            )


def compare(network: nn.Module, expected: HiFuse) -> dict[str, Any]:
    """The attributes `READ` of the network that differ from those of `expected`, a new one, by name.

    A network that is no `HiFuse` is known by the official names. Its own classes of blocks and layer norms are taken for the
    official ones.

    Raises:
        ValueError: a module of another class, with an overridden method, a hook, a parametrisation, children or an attribute
            that a new network has not; the message names it.
    """
    unused = f"{_UNUSED}|conv_norm|conv_head" if isinstance(expected, HiFuseFeatures) else _UNUSED
    is_used = re.compile(rf"(?!({unused})(\.|$))").match
    for name, module in tree(network):
        if is_used(name):
            check_hooks(module, name or "it")
    changed: dict[str, Any] = {}
    others: dict[str, nn.Module] = dict(tree(network))
    for name, each in tree(expected):
        if is_used(name) and name in others:
            changed |= _compare(name, each, others, foreign=not isinstance(network, HiFuse))
    return changed


def tree(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """All modules by name, one that has two names twice."""
    yield name, module
    for key, child in module._modules.items():
        if child is not None:
            yield from tree(uncompiled(child), f"{name}.{key}" if name else key)


def _compare(name: str, expected: nn.Module, others: dict[str, nn.Module], foreign: bool) -> dict[str, Any]:
    actual, place = others[name], name or "it"
    keys = [key for key in vars(expected) if key not in _OF_EVERY_MODULE and key not in WITHOUT_EFFECT]
    holders = [actual]
    if _stands_for(place, expected, actual, foreign):
        _check_order(place, expected, actual)
    else:
        keys = [key for key in keys if key in READ]
        holders.append(others[name.rpartition(".")[0]])  # the official block has the shift, not its attention
    changed = {}
    for key in keys:
        value = getattr(expected, key)
        found = next((getattr(each, key) for each in holders if hasattr(each, key)), value)
        if _same(found, value):
            continue
        path = f"{name}.{key}" if name else key
        if key not in READ:
            raise ValueError(f"model cannot be frozen: {path} must be {value!r} as its options say, got {found!r}")
        changed[path] = found
    return changed


def _stands_for(place: str, expected: nn.Module, actual: nn.Module, foreign: bool) -> bool:
    """Whether all attributes of both can be compared; ValueError where the forward is another one."""
    cls, base = type(actual), type(expected)
    allowed = (base, *_AS_GOOD.get(base, ()))
    if foreign:
        allowed += tuple(each for each in base.__mro__ if each.__module__.startswith("torch.nn.") and each is not nn.Module)
    stands_for = next((each for each in allowed if issubclass(cls, each)), None)
    known = nn.Module if stands_for is None else stands_for
    others = [key for part in cls.__mro__ if part not in known.__mro__ for key in vars(part)] if stands_for else []
    for key in (*others, *vars(actual)):
        if key in _methods(known):
            whose = "set on the instance" if key in vars(actual) else f"of {_name_of(cls)}"
            raise ValueError(
                f"model cannot be frozen: {place} has a {key} of its own, {whose}, and a frozen network stands for that of"
                f" {_name_of(base)}"
            )
    if stands_for is None and not (foreign and not isinstance(expected, (nn.Linear, nn.Conv2d, nn.BatchNorm2d))):
        raise ValueError(f"model cannot be frozen: {place} is a {_name_of(cls)}, where HiFuse has a {_name_of(base)}")
    return stands_for is not None


def _check_order(place: str, expected: nn.Module, actual: nn.Module) -> None:
    """ValueError where modules that run one after another are others. Elsewhere no forward looks for what it does not know."""
    names = list(actual._modules)
    if isinstance(expected, (nn.Sequential, nn.ModuleList)) and names != list(expected._modules):
        raise ValueError(f"model cannot be frozen: {place} must have the modules {list(expected._modules)}, got {names}")


def _methods(cls: type[nn.Module]) -> set[str]:
    """The names of what a call of the module may run."""
    parts = [part for part in cls.__mro__ if part not in nn.Module.__mro__]
    own = {key for part in parts for key, value in vars(part).items() if callable(value) or isinstance(value, property)}
    return {key for key in own if not key.startswith("__")} - _NO_CALL | _CALL


def _same(a: Any, b: Any) -> bool:
    try:
        return a is b or bool(a == b)
    except (RuntimeError, TypeError, ValueError):  # as of tensors and arrays
        return False


def _name_of(what: Any) -> str:
    """A class, or what a hook is."""
    named = what if hasattr(what, "__qualname__") else type(what)
    return f"{named.__module__}.{named.__qualname__}"
