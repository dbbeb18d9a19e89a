"""The recipe: parameters, optimizer, learning rate, loss and moving average."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hifuse_fast import HiFuse, use_backend
from hifuse_fast.app.training.configuration import Configuration
from hifuse_fast.options import HiFuseOptions

Tensors = list[Tensor] | tuple[Tensor, ...]

_SIDE = 64  # of the image on which parameters are looked for; any would do


def dead_parameters(options: HiFuseOptions) -> set[str]:
    """The names of the parameters that the official network has and never uses: those that get no gradient in a narrow copy."""
    with torch.random.fork_rng([]), use_backend("reference"):
        network = HiFuse(**replace(options, dims=[2 * heads for heads in options.num_heads]).to_dict())
        network(torch.zeros(2, options.in_chans, _SIDE, _SIDE)).sum().backward()
    return {name for name, parameter in network.named_parameters() if parameter.grad is None}


def set_trained(network: HiFuse, *, freeze: bool) -> None:
    """Say which parameters are trained: all that are used, or with `freeze` those of the classifier."""
    dead = dead_parameters(network.options)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in dead and (not freeze or name.startswith("conv_head.")))


def set_mode(network: HiFuse, *, freeze: bool) -> None:
    """Put it into training mode; with `freeze` the classifier alone, so that nothing before it is dropped or averaged."""
    network.train(not freeze)
    network.get_classifier().train()


def make_optimizer(network: nn.Module, configuration: Configuration) -> torch.optim.AdamW:
    """AdamW, with weight decay on all trained parameters but biases and those of one dimension."""
    trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
    bare = {name for name, p in trained if p.dim() == 1 or name.endswith(".bias")}
    groups = [
        {"params": [(name, p) for name, p in trained if name not in bare], "weight_decay": configuration.weight_decay},
        {"params": [(name, p) for name, p in trained if name in bare], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=configuration.lr, fused=True)


def factor_of(step: int, steps_per_epoch: int, configuration: Configuration) -> float:
    """The learning rate of a step, counted from 0, as a part of `lr`: linear warm-up, then a cosine."""
    warmup, end = configuration.warmup_epochs * steps_per_epoch, configuration.epochs * steps_per_epoch
    if step <= warmup and warmup:
        part = step / warmup
        return configuration.warmup_factor * (1 - part) + part
    part = (step - warmup) / max(end - warmup, 1)
    return (1 + math.cos(math.pi * part)) / 2 * (1 - configuration.end_factor) + configuration.end_factor


def class_weights(labels: Sequence[int], num_classes: int) -> Tensor:
    """A weight for each class, inverse to its size, so that the mean weight of an image is 1."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_classes).double()
    return len(labels) / (num_classes * counts)


def losses_of(logits: Tensor, labels: Tensor, weights: Tensor | None, configuration: Configuration) -> Tensor:
    """The loss of each image [n], in float32: cross entropy or focal loss, smoothed, times the weight of its class.

    Source of the focal loss: Lin et al. 2017, arXiv 1708.02002.
    """
    logits = logits.float()
    weights = None if weights is None else weights.to(logits)
    losses = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=configuration.label_smoothing)
    if not configuration.focal_gamma:
        return losses
    sure = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    return (1 - sure) ** configuration.focal_gamma * losses


def make_average(network: HiFuse, decay: float) -> AveragedModel:
    """A moving average of weights and statistics: decay * average + (1 - decay) * network; what counts is copied."""

    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, _: int | Tensor) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, 1 - decay)
        else:
            torch._foreach_copy_(averages, values)

    return AveragedModel(network, multi_avg_fn=update, use_buffers=True).eval()
