"""The stem over launchers: one product of the vendor over the patches of the image, for both branches, and their layer norms in
the language that a backend's file brings."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from hifuse_fast.ops.prepared.base import Layout, PreparedOp


class Stem(PreparedOp):
    """See `prepare_stem`."""

    layer_norm: ClassVar[ModuleType]  #: the launchers of the function, of the backend whose class this is
    weight: Tensor  # [2C, in_chans * 16]
    bias: Tensor  # [2C]
    scale: Tensor
    shift: Tensor

    @staticmethod
    def pack(tensors: Mapping[str, Tensor], dtype: torch.dtype, **options: Any) -> dict[str, Tensor]:
        flat = {"weight": tensors["weight"].flatten(2).flatten(0, 1), "bias": tensors["bias"].flatten()}
        affine = {name: tensors[name] for name in ("scale", "shift")}
        return PreparedOp.pack(flat, dtype) | PreparedOp.pack(affine, torch.float32)

    @staticmethod
    def layout(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, **options: Any) -> Layout:
        two, channels, in_chans = shapes["weight"][:3]
        flat = {"weight": (two * channels, 16 * in_chans), "bias": (two * channels,)}
        affine = {name: shapes[name] for name in ("scale", "shift")}
        return PreparedOp.layout(flat, dtype) | PreparedOp.layout(affine, torch.float32)

    @torch.no_grad()
    def forward(self, images: Tensor, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        batch, in_chans, height, width = (*images.shape[:2], images.shape[2] // 4, images.shape[3] // 4)
        patches = images.unflatten(3, (width, 4)).unflatten(2, (height, 4)).permute(0, 2, 4, 1, 3, 5)
        product = torch.addmm(self.bias, patches.reshape(batch * height * width, 16 * in_chans), self.weight.t())
        both = product.view(batch, height, width, 2, self.scale.shape[1])
        local_map, global_map = (
            self.layer_norm.write(
                both[..., i, :], self.scale[i], self.shift[i], self.options["eps"][i], "pixels", images.dtype,
                None if out is None else out[i],
            )
            for i in (0, 1)
        )  # fmt: skip
        return local_map, global_map
