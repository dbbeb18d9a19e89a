"""Grad-CAM against a case that was worked out by hand, through the fused ops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import hifuse_fast
from hifuse_fast import HiFuse, use_backend
from hifuse_fast.app.gradcam import LAYERS, grad_cam, overlay


def network() -> HiFuse:
    torch.manual_seed(0)
    return HiFuse(4, dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), conv_depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8)).eval()


def by_hand(model: HiFuse, images: torch.Tensor, c: int) -> torch.Tensor:
    """The map of fu4 [B, h, w]: y_c = w . LN(m) + b of the mean m over the n places, so that dy / dA_k is the same at each."""
    maps = model.forward_features(images).double()  # [B, C, h, w]
    norm, weight = model.conv_norm, model.conv_head.weight[c].double()
    m = maps.mean((2, 3))
    deviation = (m.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    z = (m - m.mean(1, keepdim=True)) / deviation
    g = weight * norm.weight.double()
    slope = (g - g.mean() - z * (z * g).mean(1, keepdim=True)) / deviation / (maps.shape[2] * maps.shape[3])
    cam = torch.einsum("bchw,bc->bhw", maps, slope).relu()
    return cam / cam.amax((1, 2), keepdim=True)


@torch.no_grad()
def test_the_last_map_is_that_worked_out_by_hand():
    model, images = network(), torch.randn(2, 3, 96, 128)
    with torch.enable_grad():
        found = grad_cam(model, images, [1, 3])
    for index, c in enumerate((1, 3)):
        expected = by_hand(model, images[index : index + 1], c)
        expected = torch.nn.functional.interpolate(expected[None], (96, 128), mode="bilinear")[0, 0]
        torch.testing.assert_close(found[index].double(), expected, rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 96, 128)


@pytest.mark.parametrize("layer", LAYERS)
def test_fused_ops_give_the_map_of_the_reference_also_for_odd_sizes(layer):
    model, images = network(), torch.randn(1, 3, 70, 45)
    found = grad_cam(model, images, [2], layer)
    with use_backend("reference"):
        expected = grad_cam(model, images, [2], layer)
    assert found.shape == (1, 70, 45)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert 0 <= found.min() < found.max() <= 1


def test_the_model_stays_as_it_was():
    model, images = network(), torch.randn(1, 3, 64, 64)
    model.conv_head.bias.requires_grad_(False)
    asking = [weight.requires_grad for weight in model.parameters()]
    with torch.no_grad():
        grad_cam(model, images, [0])
    assert [weight.requires_grad for weight in model.parameters()] == asking
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.fu4._forward_hooks


def test_an_error_within_the_model_leaves_no_hook():
    model = network()
    with pytest.raises(ValueError, match="images must be"):
        grad_cam(model, torch.randn(1, 5, 64, 64), [0])
    assert not model.fu4._forward_hooks
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_map_that_speaks_against_the_class_is_zero_and_not_nan():
    model, images = network(), torch.randn(1, 3, 64, 64)
    torch.nn.init.zeros_(model.conv_head.weight)
    assert (grad_cam(model, images, [0]) == 0).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layer": "fu5"}, ValueError, "layer must be one of fu1, fu2, fu3, fu4, got 'fu5'"),
        ({"classes": [4]}, ValueError, r"classes must name one of 4 for each of 1 images, got \[4\]"),
        ({"classes": [0, 1]}, ValueError, "each of 1 images"),
        ({"model": network().train()}, ValueError, "eval mode"),
        ({"model": torch.nn.Identity()}, TypeError, "must be a HiFuse, got Identity"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        grad_cam(**{"model": network(), "images": torch.randn(1, 3, 64, 64), "classes": [0], **change})


def test_a_frozen_network_is_refused():
    frozen = hifuse_fast.optimize_for_inference(network(), backend="reference")
    with pytest.raises(TypeError, match="a frozen network has no gradients"):
        grad_cam(frozen, torch.randn(1, 3, 64, 64), [0])


def test_an_overlay_leaves_what_is_zero_and_colours_the_rest():
    pytest.importorskip("matplotlib")
    image = Image.new("RGB", (4, 2), (100, 100, 100))
    cam = np.zeros((2, 4), np.float32)
    cam[0, 1] = 1
    found = np.asarray(overlay(image, cam))
    assert (found[cam == 0] == 100).all()
    assert found[0, 1, 0] > found[0, 1, 2]  # red
