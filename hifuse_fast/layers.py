"""The small modules that blocks are made of. Maps are channels last: [B, H, W, C].

A fused op reads the weights of several children and calls none of them, so it serves only where every child is plain: see
`is_plain`. Any other child is called as a module. `call` gives it the layout that it works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.nn import Module, Parameter
from torch.nn.modules import module as hooks

from hifuse_fast import ops
from hifuse_fast.checks import check_rate
from hifuse_fast.ops.functions.batch_norm.reference import finish
from hifuse_fast.ops.functions.convolution import convolution, is_bound
from hifuse_fast.ops.functions.layer_norm.reference import patches
from hifuse_fast.ops.functions.layout import convolve


def is_plain(child: nn.Module | None, kind: type[nn.Module]) -> bool:
    """Whether a call of `child` does what `kind` says and nothing else, so that an op may read its weights instead.

    Its type is exactly `kind`: a parametrisation, FSDP or an adapter makes another one. Its weights are plain tensors, and no
    quantised ones for instance. Neither it nor its class has another `forward` than when this package was imported, nor another
    way to convolve, and nobody has replaced the function by which PyTorch calls all modules. It is not compiled by itself, and
    no hook is on it or on all modules. It is asked at every call, for a hook may come later.
    """
    if type(child) is not kind:
        return False
    own, forward = child.__dict__, kind.forward  # an attribute of a module is several times as slow to ask for
    if (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
        or _FORWARDS.get(kind, forward) is not forward
        or Module.__call__ is not _CALL
        or "forward" in own
        or ("_compiled_call_impl" in own and own["_compiled_call_impl"] is not None)
        or (kind is Conv2d and ("_conv_forward" in own or _convolves_otherwise()))
    ):
        return False
    weights = own["_parameters"]
    if weights and (type(weights.get("weight")) is not Parameter or type(weights.get("bias")) is not Parameter):
        for weight in weights.values():  # a loop is slow too
            if type(weight) is not Parameter and not _is_plain_weight(weight):
                return False
    if own["_buffers"]:
        for weight in own["_buffers"].values():
            if type(weight) is not Tensor and not _is_plain_weight(weight):
                return False
    if "weight" in own or "bias" in own or "relative_position_bias_table" in own:  # a weight that is no parameter
        return all(_is_plain_weight(own.get(name)) for name in _NAMES)
    return True


def _is_plain_weight(weight: Any) -> bool:
    """Whether it is a tensor on which functions of PyTorch do what they do on any, or None.

    Raises:
        TypeError: a weight of PyTorch's Expanded Weights, which serve no indexing and no batch norm.
    """
    if type(weight).__name__ == "ExpandedWeight":
        raise TypeError(
            "torch.nn.utils._per_sample_grad cannot take HiFuse, because it serves no indexing and no batch norm: for a "
            "gradient of each image take torch.func.vmap of torch.func.grad, of the model in eval mode"
        )
    return type(weight) in _WEIGHTS or getattr(type(weight), "__torch_function__", None) is _NO_FUNCTION


_FORWARDS: dict[type[nn.Module], Any] = {}


def remember_forward(*kinds: type[nn.Module]) -> None:
    """Take the `forward` that each class has now for the one that fused ops may stand for."""
    for kind in kinds:
        _FORWARDS[kind] = kind.forward


def refuse_scripts(*kinds: type[nn.Module]) -> None:
    """Have torch.jit.script, which asks each module, say what to take in its place."""
    for kind in kinds:
        kind.__prepare_scriptable__ = _refuse_script  # type: ignore[attr-defined]


def _refuse_script(module: nn.Module) -> None:
    raise RuntimeError(f"torch.jit.script cannot take {type(module).__name__}: torch.export.export and torch.compile do")


def is_patched(kind: type[nn.Module]) -> bool:
    """Whether the class has another `forward` than when this package was imported."""
    return kind.forward is not _FORWARDS.get(kind, kind.forward) or (kind is Conv2d and _convolves_otherwise())


def _convolves_otherwise() -> bool:
    """Whether the class of PyTorch that our `Conv2d` is made of convolves otherwise than when this package was imported."""
    return nn.Conv2d.forward is not _CONVOLVE or nn.Conv2d._conv_forward is not _CONV_FORWARD


_NAMES = ("weight", "bias", "relative_position_bias_table")  # a weight that is no parameter is an attribute of the module
_WEIGHTS = (nn.Parameter, Tensor, type(None))
_NO_FUNCTION = torch._C._disabled_torch_function_impl  # of a subclass that changes no function of PyTorch, as a fake tensor
_CALL, _CONVOLVE, _CONV_FORWARD = Module.__call__, nn.Conv2d.forward, nn.Conv2d._conv_forward


def is_plain_norm(norm: nn.Module | None, width: int) -> bool:
    """Whether `norm` is a plain `nn.LayerNorm` over the last axis alone, of `width`."""
    return isinstance(norm, nn.LayerNorm) and is_plain(norm, nn.LayerNorm) and norm.normalized_shape == (width,)


def is_plain_conv(conv: nn.Module | None, size: int, *, groups: Sequence[int], bias: bool = False) -> bool:
    """Whether `conv` is a plain `Conv2d`, "same", of kernels of `size` and one of `groups`; `bias`: whether it may have one."""
    return (
        isinstance(conv, Conv2d)
        and is_plain(conv, Conv2d)
        and (bias or conv.bias is None)
        and conv.kernel_size == (size, size)
        and conv.padding == (size // 2, size // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.groups in groups
    )


_OVER_LAST_AXIS = nn.LayerNorm, nn.RMSNorm, nn.Linear


def draw_normal(weight: Tensor, std: float) -> None:
    """Draw a weight from the truncated normal distribution. In a FakeTensorMode, where PyTorch's raises, there is no data."""
    if detect_fake_mode(weight) is None:
        nn.init.trunc_normal_(weight, std=std)


def call(child: nn.Module, x: Tensor) -> Tensor:
    """`child` of a map [B, H, W, C], as a module.

    A child of this package, a wrapper around one, an `nn.LayerNorm`, `nn.RMSNorm` or `nn.Linear`, which work on the last axis,
    gets the map as it is. Any other one, as an `nn.Conv2d` or an `nn.SyncBatchNorm` that a user put there, gets [B, C, H, W]
    and gives that.
    """
    own = (getattr(each, "channels_last", False) or isinstance(each, _OVER_LAST_AXIS) for each in child.modules())
    if any(own):
        out: Tensor = child(x)
        return out
    return child(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


def affine(norm: nn.Module, size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a norm over `size` channels. What it does not have is ones or zeros.

    Their dtype is that of the other one, or of `like` where there is neither.
    """
    weight, bias = norm.weight, norm.bias
    like = next((each for each in (weight, bias) if isinstance(each, Tensor)), like)
    return (
        like.new_ones(size) if weight is None else weight,  # type: ignore[return-value]
        like.new_zeros(size) if bias is None else bias,
    )


NOTHING: dict[str, Any] = {"activation": "none", "pool": False, "residual": None}  # what follows a norm, where none asks


class Sequential(nn.Sequential):
    """`nn.Sequential` of a map [B, H, W, C]; see `call` for what a replaced layer gets."""

    channels_last = True

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = call(layer, x)
        return x


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` from [B, H, W, C] to [B, H', W', C'], computed in the layout of its weight."""

    channels_last = True

    def forward(self, x: Tensor) -> Tensor:
        if is_bound(x) and self.stride == self.dilation == (1, 1) and self.padding_mode == "zeros":
            top, left = self._reversed_padding_repeated_twice[::2]
            if top == left and sum(self._reversed_padding_repeated_twice) == 4 * top:
                return convolution(x, self.weight, self.bias, padding=top, groups=self.groups)
        return convolve(super().forward, x, self.weight)


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the channels of [B, H, W, C], and what follows it: see `hifuse_fast.ops.batch_norm`."""

    channels_last = True

    def forward(self, x: Tensor, activation: str = "none", pool: bool = False, residual: Tensor | None = None) -> Tensor:
        momentum = 0.0 if self.momentum is None or not self.training else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # a plain average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        kept = (self.running_mean, self.running_var) if not self.training or self.track_running_stats else (None, None)
        return ops.batch_norm(
            x, *affine(self, self.num_features, x), *kept, training=self.training or self.running_mean is None,
            momentum=momentum, eps=self.eps, activation=activation, pool=pool, residual=residual,
        )  # fmt: skip


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` over the channels of [B, H, W, C]."""

    channels_last = True

    def forward(self, x: Tensor) -> Tensor:
        if len(self.normalized_shape) > 1:
            return super().forward(x)
        return ops.layer_norm(x, *affine(self, self.normalized_shape[0], x), eps=self.eps)


class ConvNorm(nn.Module):
    """act(BN(conv(x))) with "same" padding, [B, H, W, in_dim] -> [B, H, W, out_dim]; `norm=False` leaves the conv alone.

    A call may also ask for what `BatchNorm2d` does after the norm: `activation`, `pool`, `residual`.
    """

    channels_last = True

    def __init__(
        self, in_dim: int, out_dim: int, kernel_size: int, *, bias: bool = True, norm: bool = True, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = Conv2d(in_dim, out_dim, kernel_size, padding=kernel_size // 2, bias=bias, groups=groups)
        self.bn = BatchNorm2d(out_dim) if norm else None

    def forward(self, x: Tensor, **after: Any) -> Tensor:
        return batch_norm(self.bn, call(self.conv, x), **after)


def conv_norm(child: nn.Module, x: Tensor, **after: Any) -> Tensor:
    """`child` of a map, then `after`: in one where it is a plain `ConvNorm`, else what the child gives is the norm alone."""
    if is_plain(child, ConvNorm):
        out: Tensor = child(x, **after)
        return out
    return finish(call(child, x), **{**NOTHING, **after})


def batch_norm(norm: nn.Module | None, x: Tensor, **after: Any) -> Tensor:
    """`norm` of a map, then `after`: in one where it is a plain `BatchNorm2d`, else what the norm gives is the norm alone."""
    if isinstance(norm, BatchNorm2d) and is_plain(norm, BatchNorm2d):
        out: Tensor = norm(x, **after)
        return out
    return finish(x if norm is None else call(norm, x), **{**NOTHING, **after})


def linear(
    child: nn.Linear, x: Tensor, norm: nn.LayerNorm | None = None, rows: str = "pixels", activation: str = "none"
) -> Tensor:
    """act(child(norm(rows of x))), in one op where the children are plain."""
    plain, depth = is_plain(child, nn.Linear), x.size(-1) * (4 if rows == "patches" else 1)
    before: dict[str, Any] = {}
    if norm is not None and plain and is_plain_norm(norm, depth):
        weight, bias = affine(norm, depth, x)
        before = {"norm_weight": weight, "norm_bias": bias, "eps": norm.eps, "rows": rows}
    elif norm is not None:
        x = norm(patches(x) if rows == "patches" else x)
    if plain:
        return ops.linear(x, child.weight, child.bias, activation=activation, **before)
    out: Tensor = child(x)
    return F.gelu(out) if activation == "gelu" else out


def concat_norm(norm: nn.LayerNorm, maps: list[Tensor], gates: list[Tensor | None] | None = None) -> Tensor:
    """norm of the maps, each times its gate, side by side."""
    width = sum(x.size(-1) for x in maps)
    if is_plain_norm(norm, width):
        weight, bias = affine(norm, width, maps[0])
        return ops.concat_norm(*maps, weight=weight, bias=bias, gates=gates, eps=norm.eps)
    gated = maps if gates is None else [x if gate is None else x * gate for x, gate in zip(maps, gates, strict=True)]
    out: Tensor = norm(torch.cat(gated, -1))
    return out


class DropPath(nn.Module):
    """Stochastic depth. In training an image's branch becomes 0 with probability `rate`; otherwise it is divided by 1 - rate.

    Source: Huang et al. 2016.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = check_rate("rate", rate)

    @property
    def active(self) -> bool:
        """Whether a call does anything."""
        return self.training and self.rate > 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        keep = 1.0 - self.rate
        draw = torch.rand((x.size(0),) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x / keep * (keep + draw).floor()

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


remember_forward(nn.Linear, nn.LayerNorm, nn.ReLU, nn.Dropout, nn.Identity)
remember_forward(Sequential, Conv2d, BatchNorm2d, LayerNorm, ConvNorm, DropPath)
refuse_scripts(Sequential, Conv2d, BatchNorm2d, LayerNorm, ConvNorm, DropPath)


def reshape_transform(x: Tensor) -> Tensor:
    """[B, H, W, C] -> [B, C, H, W]: what CAM tools need for the layers of HiFuse, whose maps are channels last.

    Hand it to a CAM tool as its `reshape_transform` with any of the layers `stages.N`, `layersN`, `fuN` or a block of them. The
    maps of `forward_features` and `forward_stages` are [B, C, H, W] already.
    """
    return x.permute(0, 3, 1, 2)
