"""The network within what wraps it: DistributedDataParallel, AveragedModel, torch.compile, a module of a user's own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from hifuse_fast.model import HiFuse

# What hands its input to the network and its output back, by full name: to import them all would take a second.
_TRANSPARENT = {
    "torch._dynamo.eval_frame.OptimizedModule",
    "torch.nn.parallel.data_parallel.DataParallel",
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch.optim.swa_utils.AveragedModel",
}
_CHILDREN = {"patch_embed", "downsample_layers", "conv_norm", "fu4"}  # of the official class, which is no HiFuse of ours


def find_networks(model: nn.Module) -> dict[str, nn.Module]:
    """The networks that `model` is or holds, by their names in it: each a `HiFuse`, or of a class with the official names."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, HiFuse) or set(module._modules) >= _CHILDREN:
            found[name] = module
    return found


def wrappers_of(model: nn.Module, name: str) -> Iterator[nn.Module]:
    """The modules that a call passes on its way from `model` to the module of this name in it, the outermost first."""
    for key in name.split(".") if name else ():
        yield model
        model = model._modules[key]  # type: ignore[assignment]


def is_transparent(wrapper: nn.Module) -> bool:
    """Whether a call of the wrapper can be nothing but a call of the one network within."""
    cls = type(wrapper)
    if f"{cls.__module__}.{cls.__qualname__}" in _TRANSPARENT:
        return True
    alone = cls is nn.Sequential and len(wrapper._modules) == 1
    return (alone or cls.forward is nn.Module.forward) and "forward" not in vars(wrapper)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` wrapped it."""
    inner = module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None
    return module if inner is None else uncompiled(inner)
