"""Whether a network is as `create_model` makes it: what an export that reads weights and options must ask."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.modules.module as global_hooks
from torch import nn

from hifuse_fast.checkpoints.save import find_network
from hifuse_fast.model import HiFuse, HiFuseFeatures, create_model
from hifuse_fast.ops.prepared.base import PreparedOp

REMEDY = "torch.onnx.export(model, ...) takes networks that were changed, and calls their modules as they are"
_FREE = ("conv_head", "norm", "head")  # the classifier is called as a module, the other two are not used


def check_plain(model: Any) -> HiFuse:
    """The network that `model` is or wraps, whose modules compute what their types, weights and options say.

    Raises:
        TypeError: `model` is a program that was exported before without our ops, a frozen network, or no HiFuse.
        ValueError: a program with our ops; a network in training mode; one whose modules were replaced, hooked,
            parametrised or given a forward of their own; the message names the first of them.
    """
    if isinstance(model, torch.export.ExportedProgram):
        _refuse_program(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a HiFuse, got {type(model).__name__}")
    if any(isinstance(module, PreparedOp) for module in model.modules()):
        raise TypeError(
            f"model must have its official weights, got a frozen {type(model).__name__}: export the network that it was made of"
        )
    network = find_network(model)
    if network is None:
        raise TypeError(
            f"model must be a HiFuse, got {type(model).__name__}; for weights of the official class, save its state_dict and"
            " take create_model_from_checkpoint"
        )
    training = next((name for name, module in network.named_modules() if module.training), None)
    if training is not None:
        where = f"its {training} is" if training else "it is"
        raise ValueError(f"model must be in eval mode, {where} in training mode: call model.eval() first")
    reason = _why_not_plain(network)
    if reason is not None:
        raise ValueError(f"model must be as create_model makes it, but {reason}; {REMEDY}")
    return network


def _why_not_plain(network: HiFuse) -> str | None:
    if type(network) not in (HiFuse, HiFuseFeatures):
        return f"it is of the class {type(network).__name__}, which may have a forward of its own"
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return "there are global forward hooks"
    made = _modules(create_model("hifuse_tiny", **network.options.to_dict(), device="meta"))
    found = _modules(network)
    gone = [f"{name} is gone" for name in made if name not in found]
    reasons = [f"{name} {reason}" for name in found if (reason := _why_not(found[name], made.get(name)))]
    return next(iter(gone + reasons), None)


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """By name, the modules that the export reads."""
    return {name or "the network": each for name, each in network.named_modules() if name.split(".")[0] not in _FREE}


def _why_not(module: nn.Module, made: nn.Module | None) -> str | None:
    """Why a module may compute something else than the one of `create_model`, for a sentence that begins with its name."""
    if made is None:
        return "was added"
    if not isinstance(module, HiFuse) and not _same_kind(module, made):
        return f"is a {type(module).__name__}, and not a {type(made).__name__}"
    own = next((name for name in vars(module) if callable(getattr(type(module), name, None))), None)
    if own is not None:
        return f"has a {own} of its own"
    return "has a forward hook" if module._forward_hooks or module._forward_pre_hooks else None


def _same_kind(module: nn.Module, made: nn.Module) -> bool:
    """Of one type. In eval mode, a batch norm is the same whether it is synchronised in training or not."""
    return type(module) is type(made) or (isinstance(made, nn.BatchNorm2d) and type(module) is nn.SyncBatchNorm)


def _refuse_program(program: torch.export.ExportedProgram) -> None:
    graphs = [module.graph for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule)]
    targets = sorted({str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"})
    ours = next((target for target in targets if target.startswith("hifuse_fast.")), None)
    if ours is None:
        raise TypeError(
            "model must be a HiFuse, got an ExportedProgram without our ops, which torch.onnx.export takes as it is"
        )
    raise ValueError(
        f"model must be a HiFuse, got an ExportedProgram with the op {ours}, which ONNX has not: export the network itself, or"
        ' make the program under use_backend("reference")'
    )
