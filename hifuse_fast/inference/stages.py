"""The stages of the frozen network: one description, over a maker.

A maker is called with an op, the function of `fold` that gives its tensors, and the name of the official module that they come
from. One folds and packs the weights of a model, another takes packed tensors out of a file (make.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from hifuse_fast.inference import fold
from hifuse_fast.inference.buffers import Maps
from hifuse_fast.inference.configuration import Configuration, Settings
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.ops.prepared.fuse_path import backend_of_fuse_path, prepare_fuse_path
from hifuse_fast.ops.prepared.global_block import backend_of_global_block, prepare_global_block
from hifuse_fast.ops.prepared.together import together


class Maker(Protocol):
    """Makes the ops of a network, and keeps them by name."""

    made: dict[str, PreparedOp]

    def __call__(
        self, op: str, folding: Callable[[fold.Weights, str], fold.Folded], module: str = "", **options: Any
    ) -> PreparedOp:
        """The op; an option `backend` is that of a block, by `backend_of`."""

    def backend_of(self, block: Callable[..., str], **sizes: Any) -> str:
        """The backend of a block's parts, by the function of its op that says so."""


class Stage(nn.Module):
    """One stage of all three branches: it takes over the maps of the stage before, and returns its own."""

    def __init__(self, c: Configuration, make: Maker, setting: Settings, i: int) -> None:
        super().__init__()
        self.dim = c.dims[i]
        self.downsample: PreparedOp | None = None
        self.merge: PreparedOp | None = None
        if i:
            patches = {"op": "linear", "rows": "patches", "algorithm": c.algorithm}
            down, merge = f"downsample_layers.{i}", f"layers{i + 1}.downsample"
            eps = setting(f"{down}.0.eps", fold.EPS)
            self.downsample = make(folding=fold.downsample, module=down, norm="pixel", eps=eps, **patches)
            eps = setting(f"{merge}.norm.eps", fold.GLOBAL_EPS)
            self.merge = make(folding=fold.merge, module=merge, norm="row", eps=eps, **patches)
        self.local_blocks = nn.ModuleList(
            make("local_block", fold.local_block, block, eps=setting(f"{block}.norm.eps", fold.EPS))
            for block in (f"stages.{i}.{j}" for j in range(c.conv_depths[i]))
        )
        self.global_blocks = nn.ModuleList(
            _global_block(
                make,
                block,
                c.algorithm,
                eps=setting(f"{block}.norm1.eps", fold.GLOBAL_EPS),
                num_heads=c.num_heads[i],
                head_dim=c.dims[i] // c.num_heads[i],
                window_size=c.window_size,
                shift_size=setting(f"{block}.attn.shift_size", (j % 2) * (c.window_size // 2)),
            )
            for j, block in ((j, f"layers{i + 1}.blocks.{j}") for j in range(c.depths[i]))
        )
        self.fusion = Fusion(c, make, setting, f"fu{i + 1}", self.dim, first=i == 0)

    def forward(
        self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None, maps: Maps
    ) -> tuple[Tensor, Tensor, Tensor]:
        local_map, global_map = self._halve(local_map, global_map, maps)
        for block in self.local_blocks:
            local_map = _replace(block, local_map, maps)
        for block in self.global_blocks:
            global_map = block(global_map, maps)
        return local_map, global_map, self.fusion(local_map, global_map, fused_map, maps)

    def _halve(self, local_map: Tensor, global_map: Tensor, maps: Maps) -> Sequence[Tensor]:
        if self.downsample is None or self.merge is None:
            return local_map, global_map
        shape = local_map.shape[0], local_map.shape[1] // 2, local_map.shape[2] // 2, self.dim
        halved = together(
            (self.downsample, local_map, maps.take(*shape)), (self.merge, global_map, maps.take(*shape))
        )  # fmt: skip
        maps.give(local_map, global_map)
        return halved


def _global_block(make: Maker, module: str, algorithm: str, *, eps: float, **attention: Any) -> nn.Module:
    sizes = {name: attention[name] for name in ("num_heads", "head_dim", "window_size")}
    by = {"backend": make.backend_of(backend_of_global_block, **sizes)}
    return prepare_global_block(
        make("linear", fold.qkv, module, norm="row", eps=eps, algorithm=algorithm, **by),
        make("window_attention", fold.attention, module, **attention, **by),
        make("linear", fold.output, module, activation="gelu", algorithm=algorithm, **by),
    )


class Fusion(nn.Module):
    """See `hifuse_fast.blocks.HFFBlock`. Takes over the fused map, and only reads the others."""

    def __init__(self, c: Configuration, make: Maker, setting: Settings, module: str, dim: int, first: bool) -> None:
        super().__init__()
        algorithm = {"algorithm": c.algorithm}
        gate = setting(f"{module}.channel_gate", c.channel_gate)
        eps, gated_eps = (setting(f"{module}.{norm}.eps", fold.EPS) for norm in ("norm2" if first else "norm1", "norm3"))
        folding = fold.first_fusion if first else fold.fusion
        of_path = {**algorithm, "backend": make.backend_of(backend_of_fuse_path, channels=dim, first=first)}
        self.path = prepare_fuse_path(
            local_linear=make("linear", fold.conv_norm, f"{module}.W_l", **of_path),
            global_linear=make("linear", fold.conv_norm, f"{module}.W_g", **of_path),
            up=None if first else make("linear", fold.conv_norm, f"{module}.Updim", activation="relu", pool=True, **of_path),
            fuse=make("linear", folding, module, norm="row", eps=eps, activation="gelu", **of_path),
        )
        self.gated_concat = make(
            "gated_concat", fold.gated_concat, module, double_sigmoid=gate == "double_sigmoid", eps=gated_eps
        )
        self.mixer = make("mixer", fold.mixer, module, **algorithm)
        self.mlp = make("mlp", fold.mlp, module, **algorithm)

    def forward(self, local_map: Tensor, global_map: Tensor, fused_map: Tensor | None, maps: Maps) -> Tensor:
        shape = local_map.shape
        x, w_f = self.path(local_map, global_map, fused_map, maps)
        z = self.gated_concat(local_map, global_map, x, out=maps.take(*shape[:3], 3 * shape[3]))
        maps.give(x)
        u = _replace(self.mixer, z, maps)
        out: Tensor = self.mlp(u, residual=w_f, out=maps.take(*shape))
        maps.give(u, *([] if w_f is None else [w_f]))
        return out


def _replace(op: nn.Module, x: Tensor, maps: Maps) -> Tensor:
    """op(x) in a map of the same shape; x goes back."""
    out: Tensor = op(x, out=maps.take(*x.shape))
    maps.give(x)
    return out
