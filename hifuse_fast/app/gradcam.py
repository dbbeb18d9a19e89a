"""Grad-CAM: where in an image a network saw the class that it named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hifuse_fast import HiFuse
from hifuse_fast.app.extras import needs

LAYERS = ("fu1", "fu2", "fu3", "fu4")  #: whose maps can be asked, each half as fine as the one before


def grad_cam(model: HiFuse, images: Tensor, classes: Sequence[int], layer: str = "fu4") -> Tensor:
    r"""Maps of how much each place of an image speaks for a class.

    .. math::
        L = \mathrm{relu}\Big(\sum_k \alpha_k A_k\Big), \qquad
        \alpha_k = \mathrm{mean}_{hw} \frac{\partial y_c}{\partial A_k}

    A is the fused map that `layer` gives, y_c the logit of the class. Each map is divided by its largest value, unless that is
    0, and enlarged to the images bilinearly.

    Args:
        model: in eval mode, not frozen by `optimize_for_inference`. Its weights and their gradients stay as they are.
        images: [B, in_chans, H, W], as the model takes them.
        classes: of each image, the class to look for.
        layer: one of `LAYERS`.

    Returns:
        [B, H, W] float32, from 0 to 1. All 0 where nothing in the map speaks for the class.

    Raises:
        TypeError, ValueError: an argument that does not fit.

    Source: Selvaraju et al. 2017, Grad-CAM, equations 1 and 2.
    """
    if not isinstance(model, HiFuse):
        raise TypeError(f"model must be a HiFuse, got {type(model).__name__}: a frozen network has no gradients")
    if model.training:
        raise ValueError("model must be in eval mode: call model.eval() first")
    if layer not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}, got {layer!r}")
    if len(classes) != len(images) or not all(0 <= c < model.num_classes for c in classes):
        raise ValueError(f"classes must name one of {model.num_classes} for each of {len(images)} images, got {list(classes)}")
    maps: list[Tensor] = []

    def watch(_: nn.Module, __: object, out: Tensor) -> Tensor:
        maps.append(out.detach().requires_grad_())
        return maps[-1]

    with torch.enable_grad(), _constant(model):
        handle = model.get_submodule(layer).register_forward_hook(watch)
        try:
            logits = model(images)
        finally:
            handle.remove()
        asked = logits[torch.arange(len(images)), torch.as_tensor(classes, device=logits.device)].sum()
        (gradient,) = torch.autograd.grad(asked, maps)
    values, slopes = maps[0].detach().float(), gradient.float()  # [B, h, w, C]
    cam = (values * slopes.mean((1, 2), keepdim=True)).sum(-1).relu()
    largest = cam.amax((1, 2), keepdim=True)
    cam = torch.where(largest > 0, cam / largest, cam)
    # Padding at the right and the bottom belongs to the map, and not to the image.
    step = 4 * 2 ** LAYERS.index(layer)
    size = (step * cam.shape[1], step * cam.shape[2])
    enlarged = interpolate(cam[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return enlarged[:, : images.shape[2], : images.shape[3]]


@contextlib.contextmanager
def _constant(model: nn.Module) -> Iterator[None]:
    """In this block no weight asks for a gradient, so that only what comes after the map is differentiated."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in asking:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


def overlay(image: Image.Image, cam: NDArray[np.float32], strength: float = 0.5) -> Image.Image:
    """The image under the colours of its map: dark blue is 0, red is 1.

    Args:
        image: RGB.
        cam: [H, W] from 0 to 1, of the image's size.
        strength: share of the colour where the map is 1; where it is 0, the image is as it was.
    """
    colours = needs("matplotlib", "evaluate").colormaps["turbo"](cam)[..., :3]
    share = strength * cam[..., None]
    mixed = np.asarray(image.convert("RGB"), np.float64) * (1 - share) + 255 * colours * share
    return Image.fromarray(mixed.round().astype(np.uint8))
