"""Which networks can be exported: those whose modules do what their types, weights and options say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hifuse_fast.checkpoints.wrappers import uncompiled
from hifuse_fast.edits import check_eval, edits, is_used, network_of, new_network
from hifuse_fast.model import HiFuse, HiFuseFeatures
from hifuse_fast.ops.prepared.base import PreparedOp

_CALLED = ["conv_head"]  # the classifier


def check_plain(model: Any) -> HiFuse:
    """The network that `model` is or wraps.

    Its classifier may be anything, because the export calls it. It reads the other modules, and calls none of them.

    Raises:
        TypeError: `model` is a program that was exported before without our ops, a frozen network, or no HiFuse.
        ValueError: a program with our ops; a network in training mode; one with a module that was replaced, hooked,
            parametrised, compiled or given a method of its own; the message names the module.
    """
    if isinstance(model, torch.export.ExportedProgram):
        _refuse_program(model)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a HiFuse, got {type(model).__name__}")
    if any(isinstance(module, PreparedOp) for module in model.modules()):
        raise TypeError(
            f"model must have its official weights, got a frozen {type(model).__name__}: export the network that it was made of"
        )
    network = network_of(model)
    if not isinstance(network, HiFuse):
        raise TypeError(
            f"model must be a HiFuse, got {type(model).__name__}; for weights of the official class, save its state_dict and"
            " take create_model_from_checkpoint"
        )
    check_eval(network)
    expected = new_network(HiFuseFeatures if isinstance(network, HiFuseFeatures) else HiFuse, network.options)
    modules = [(name, each) for name, each in network.named_modules() if is_used(expected, _CALLED)(name)]
    compiled = [f"{name} is compiled" for name, module in modules if uncompiled(module) is not module]
    for reason in (*edits(network, expected, _CALLED), *compiled):
        raise ValueError(
            f"model cannot be exported: {reason}; torch.onnx.export(model, ...) takes networks that were changed, and calls"
            " their modules as they are"
        )
    return network


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
