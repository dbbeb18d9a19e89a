"""A network with the names and classes of the official one: plain ones of PyTorch, a layer norm and blocks of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from hifuse_fast.blocks import GlobalBlock


class LayerNorm(nn.Module):
    """Of the official code, which has the layout as an option."""

    def __init__(self, like: nn.LayerNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.data_format = like.weight, like.bias, like.eps, "channels_first"


class Block(nn.Module):
    """Stands for each class of blocks, and for the network: children and weights of another module."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        for name, parameter in like._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in like._buffers.items():
            self.register_buffer(name, buffer)
        for name, child in like._modules.items():
            self.add_module(name, child)


def official_copy(model: nn.Module) -> Any:
    """A copy of a HiFuse that shows its state_dict and the attributes that the official modules have; not to be called."""
    return _official(copy.deepcopy(model)).eval()


def _official(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.LayerNorm):
        return LayerNorm(module)
    plain = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.ReLU, nn.Dropout, nn.Identity, nn.Sequential, nn.ModuleList)
    cls = next((each for each in plain if isinstance(module, each)), None)
    official = module if cls is not None else Block(module)
    if cls is not None:
        official.__class__ = cls
    for name, child in list(official._modules.items()):
        official._modules[name] = None if child is None else _official(child)
    if isinstance(module, GlobalBlock):
        official.shift_size = module.attn.shift_size
    return official
