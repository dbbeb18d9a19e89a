"""The official weights -> the plain tensors of each prepared op, folded in float64.

Each function takes the state_dict and the name of a module in it, and returns the arguments of a `prepare_<op>`. The scale and
the shift of a norm go into the linear that follows. A batch norm goes into the convolution before it, or the linear after it:

    W (s x + t) + b = (W s) x + (W t + b)        s (W x + b) + t = (s W) x + (s b + t)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]  # also the eps of a batch norm, as `<name>.eps`, where it is another than below
Folded = dict[str, Tensor]

GLOBAL_EPS = 1e-5  # of the layer norms of the global branch
EPS = 1e-6  # of all others
BATCH_NORM_EPS = 1e-5


def stem(weights: Weights, _: str) -> Folded:
    """Both patch embeddings, the local branch's first."""
    local, embed = "downsample_layers.0", "patch_embed"
    names = {
        "weight": (f"{local}.0.weight", f"{embed}.proj.weight"),
        "bias": (f"{local}.0.bias", f"{embed}.proj.bias"),
        "scale": (f"{local}.1.weight", f"{embed}.norm.weight"),
        "shift": (f"{local}.1.bias", f"{embed}.norm.bias"),
    }
    return {name: torch.stack([_wide(weights, each) for each in pair]) for name, pair in names.items()}


def downsample(weights: Weights, module: str) -> Folded:
    """The norm of each pixel, then the 2x2 convolution, over patches in the order (0, 0), (1, 0), (0, 1), (1, 1)."""
    weight = _wide(weights, f"{module}.1.weight").permute(0, 3, 2, 1).flatten(1)  # [N, column, row, C]
    scale, shift = (each.repeat(4) for each in _affine(weights, f"{module}.0"))
    return _after(scale, shift, weight, _wide(weights, f"{module}.1.bias"))


def merge(weights: Weights, module: str) -> Folded:
    """Patch merging."""
    return _after(*_affine(weights, f"{module}.norm"), _wide(weights, f"{module}.reduction.weight"))


def local_block(weights: Weights, module: str) -> Folded:
    filters, filter_bias = _wide(weights, f"{module}.dwconv.weight")[:, 0], _wide(weights, f"{module}.dwconv.bias")
    return {"filters": filters, "filter_bias": filter_bias, **norm_linear(weights, f"{module}.norm", f"{module}.pwconv")}


def qkv(weights: Weights, module: str) -> Folded:
    return norm_linear(weights, f"{module}.norm1", f"{module}.attn.qkv")


def attention(weights: Weights, module: str) -> Folded:
    """A padded token is 0 after the norm and its shift. So its q, k, v are the official bias, not the folded one."""
    folded = {"bias_table": weights[f"{module}.attn.relative_position_bias_table"]}
    bias = f"{module}.attn.qkv.bias"
    return {**folded, "qkv_bias": weights[bias]} if bias in weights else folded


def output(weights: Weights, module: str) -> Folded:
    """`proj` and `fc1`, with nothing between them: W_f (W_p x + b_p) + b_f."""
    first, second = _wide(weights, f"{module}.attn.proj.weight"), _wide(weights, f"{module}.fc1.weight")
    bias = second @ _wide(weights, f"{module}.attn.proj.bias") + _wide(weights, f"{module}.fc1.bias")
    return {"weight": second @ first, "bias": bias}


def conv_norm(weights: Weights, module: str) -> Folded:
    """A 1x1 convolution and its batch norm."""
    weight, bias = _wide(weights, f"{module}.conv.weight").flatten(1), _wide(weights, f"{module}.conv.bias")
    return _before(weight, bias, *_batch_norm(weights, f"{module}.bn"))


def first_fusion(weights: Weights, module: str) -> Folded:
    """[w_l, w_g] -> x, where there is no fused map before."""
    return _norm_conv_norm(weights, f"{module}.norm2", f"{module}.W")


def fusion(weights: Weights, module: str) -> Folded:
    """[w_f, w_l, w_g] -> x."""
    return _norm_conv_norm(weights, f"{module}.norm1", f"{module}.W3")


def gated_concat(weights: Weights, module: str) -> Folded:
    weight = _wide(weights, f"{module}.spatial.conv.weight")[0]
    scale, shift = _affine(weights, f"{module}.norm3")
    bn_scale, bn_shift = _batch_norm(weights, f"{module}.spatial.bn")
    return {
        "filters": weight * bn_scale,
        "filter_bias": bn_shift,
        "squeeze": weights[f"{module}.se.0.weight"].flatten(1),
        "expand": weights[f"{module}.se.2.weight"].flatten(1),
        "scale": scale,
        "shift": shift,
    }


def mixer(weights: Weights, module: str) -> Folded:
    """As it is: half of all weights, and nothing to fold."""
    return {"weight": weights[f"{module}.residual.conv1.conv.weight"]}


def mlp(weights: Weights, module: str) -> Folded:
    """BN1 goes into `conv2`, after it; BN3 into `conv3`, before it."""
    module = f"{module}.residual"
    expand, project = (_wide(weights, f"{module}.{conv}.conv.weight").flatten(1) for conv in ("conv2", "conv3"))
    first = _after(*_batch_norm(weights, f"{module}.bn1"), expand)
    scale, shift = _batch_norm(weights, f"{module}.conv3.bn")
    return {
        "expand": first["weight"],
        "expand_bias": first["bias"],
        "project": project * scale[:, None],
        "project_bias": shift,
    }


def head(weights: Weights, _: str) -> Folded:
    return norm_linear(weights, "conv_norm", "conv_head")


def head_norm(weights: Weights, _: str) -> Folded:
    """Where there is no classifier."""
    scale, shift = _affine(weights, "conv_norm")
    return {"weight": torch.diag(scale), "bias": shift}


def norm_linear(weights: Weights, norm: str, linear: str) -> Folded:
    """A linear after a layer norm."""
    bias = f"{linear}.bias"
    return _after(
        *_affine(weights, norm), _wide(weights, f"{linear}.weight"), _wide(weights, bias) if bias in weights else None
    )


def _norm_conv_norm(weights: Weights, norm: str, module: str) -> Folded:
    first = conv_norm(weights, module)
    return _after(*_affine(weights, norm), first["weight"], first["bias"])


def _after(scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor | None = None) -> Folded:
    """W (s x + t) + b"""
    moved = weight @ shift
    return {"weight": weight * scale, "bias": moved if bias is None else moved + bias}


def _before(weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Folded:
    """s (W x + b) + t"""
    return {"weight": weight * scale[:, None], "bias": bias * scale + shift}


def _affine(weights: Weights, norm: str) -> tuple[Tensor, Tensor]:
    return _wide(weights, f"{norm}.weight"), _wide(weights, f"{norm}.bias")


def _batch_norm(weights: Weights, norm: str) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode."""
    weight, bias = _affine(weights, norm)
    eps = weights[f"{norm}.eps"].item() if f"{norm}.eps" in weights else BATCH_NORM_EPS
    scale = weight / (_wide(weights, f"{norm}.running_var") + eps).sqrt()
    return scale, bias - _wide(weights, f"{norm}.running_mean") * scale


def _wide(weights: Weights, name: str) -> Tensor:
    return weights[name].double()
