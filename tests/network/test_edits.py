"""What a user changes in modules, in their classes and in their weights has the effect that it has in the official network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.masked import masked_tensor

from hifuse_fast import HiFuse, optimize_for_inference
from hifuse_fast.blocks import InvertedMLP, WindowAttention
from hifuse_fast.layers import BatchNorm2d, Conv2d, ConvNorm, DropPath
from tests.support.modules import assert_same, narrow, official, some_images, two_steps


def norm_over_maps(model: HiFuse, affine: bool) -> None:
    """Layer norms of whole maps, and of rows: what their normalized_shape says."""
    model.layers1.blocks[0].norm1 = nn.LayerNorm((16, 16, 16), elementwise_affine=affine).double()
    model.stages[0][0].norm = nn.LayerNorm((16, 16), elementwise_affine=affine).double()
    model.fu1.norm3 = nn.LayerNorm((16, 48), elementwise_affine=affine).double()
    model.patch_embed.norm.__init__((16, 16), elementwise_affine=affine, dtype=torch.float64)  # type: ignore[misc]


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_takes_the_axes_of_its_normalized_shape(affine: bool) -> None:
    images, model = some_images(2, 64, 64), narrow()
    before = model(images)
    norm_over_maps(model, affine)
    with official():
        expected = model(images)
    assert not torch.allclose(expected, before, rtol=1e-3)
    assert_same([model(images)], [expected])


@pytest.mark.parametrize("cls", [nn.Linear, nn.LayerNorm, nn.Conv2d])
def test_a_class_whose_forward_is_replaced(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    images, model, forward = some_images(), narrow(), cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: forward(self, x) * 1.5)
    with official():
        expected = model(images)
    assert_same([model(images)], [expected])


def test_a_call_of_modules_that_is_replaced_sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images, model, call, seen = some_images(), narrow(), nn.Module.__call__, []
    monkeypatch.setattr(
        nn.Module, "__call__", lambda self, *args, **options: (seen.append(self), call(self, *args, **options))[1]
    )
    model(images)
    count = len(seen)
    with official():
        model(images)
    assert len(seen) == 2 * count


class Scaled(Tensor):
    """A weight as packages for quantisation make them: it says itself what a linear of it is."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is F.linear:
            return 1.5 * F.linear(*(x.as_subclass(Tensor) if isinstance(x, Scaled) else x for x in args))
        return super().__torch_function__(func, types, args, kwargs)


def test_a_linear_with_a_weight_of_another_class() -> None:
    images, model = some_images(), narrow()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(module.weight.detach().as_subclass(Scaled), requires_grad=False)
    with official():
        expected = model(images)
    assert not torch.allclose(expected, narrow()(images), rtol=1e-3)
    assert_same([model(images)], [expected])


def test_gradients_of_each_image_by_expanded_weights_are_refused_by_name() -> None:
    """They have no rule for the position bias, which is indexed, nor for batch norms."""
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    with pytest.raises(TypeError, match=r"cannot take HiFuse.*: for a gradient of each image take torch.func.vmap"):
        call_for_per_sample_grads(narrow())(some_images())


def squeeze(width: int) -> nn.Module:
    torch.manual_seed(2)
    layers = nn.Conv2d(width, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, width, 1)
    return nn.Sequential(*layers).double()


def test_a_weight_of_another_class_that_is_no_parameter() -> None:
    """As a replica of a module has its weights, and whoever computes them at each call."""
    model = narrow()
    for module in (model.layers2.blocks[0].attn.proj, model.fu2.residual.bn1):
        weight = module.weight.detach()
        del module.weight
        module.weight = weight.as_subclass(Scaled)  # type: ignore[assignment]
    with official():
        expected = model(some_images())
    torch.testing.assert_close(model(some_images()).as_subclass(Tensor), expected.as_subclass(Tensor))
    assert not torch.allclose(expected.as_subclass(Tensor), narrow()(some_images()))


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
def test_masked_and_distributed_images_are_refused_by_name() -> None:
    class DTensor(Tensor):
        pass

    with pytest.raises(TypeError, match=r"images must be a plain tensor, got a MaskedTensor.*get_data"):
        narrow()(masked_tensor(some_images(), some_images() > 0))
    with pytest.raises(TypeError, match=r"images must be a plain tensor, got a DTensor.*fully_shard"):
        narrow()(some_images().as_subclass(DTensor))


def test_a_squeeze_sees_the_largest_values_and_the_means_one_after_the_other() -> None:
    images, model = some_images(), narrow().train()
    model.fu2.se = squeeze(32)
    seen: list[Tensor] = []
    model.fu2.se.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.layers2.register_forward_hook(lambda module, args, out: seen.append(out))
    model(images)
    global_map, largest, mean = seen
    torch.testing.assert_close(largest, global_map.permute(0, 3, 1, 2).amax((2, 3), keepdim=True))
    torch.testing.assert_close(mean, global_map.permute(0, 3, 1, 2).mean((2, 3), keepdim=True))
    assert model.fu2.se[1].num_batches_tracked == 2


def no_change(model: HiFuse) -> None:
    pass


def other_norms(model: HiFuse) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.GroupNorm(1, child.num_features).double())
    model.layers2.blocks[0].norm1 = nn.RMSNorm(32).double()
    model.conv_norm = nn.RMSNorm(64).double()
    model.downsample_layers[1][0] = nn.RMSNorm(16).double()


def edited_norms(model: HiFuse) -> None:
    model.fu1.W_l.bn.eval()
    model.fu1.spatial.bn = nn.BatchNorm2d(1, track_running_stats=False).double()
    model.fu2.residual.bn1.momentum = None
    model.fu4.W_g.bn.weight = None
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-2


def edited_convolutions(model: HiFuse) -> None:
    for conv in (model.stages[0][0].dwconv, model.fu1.residual.conv1.conv):
        conv.padding, conv.dilation = (2, 2), (2, 2)
    torch.manual_seed(1)
    model.stages[0][1].dwconv = nn.Conv2d(16, 16, 5, padding=2, padding_mode="circular").double()


def tied(model: HiFuse) -> None:
    model.stages[0][1] = model.stages[0][0]
    model.layers1.blocks[1].fc1.weight = model.layers1.blocks[1].attn.proj.weight


def weights_as_functions(model: HiFuse) -> None:
    """Of a leaf, as hypernetworks and meta-learning make them."""
    model.leaf = nn.Parameter(torch.full((), 1.25, dtype=torch.float64))  # type: ignore[assignment]
    for module in [model.fu1.W_l.conv, model.layers1.blocks[0].attn.qkv, model.stages[0][0].norm, model.fu2.residual.bn1]:
        weight = module.weight.detach()
        del module.weight
        module.register_forward_pre_hook(lambda m, args, weight=weight: setattr(m, "weight", weight * model.leaf))  # type: ignore[misc]


def some_frozen(model: HiFuse) -> None:
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 == 0)


EDITS = [no_change, other_norms, edited_norms, edited_convolutions, tied, weights_as_functions, some_frozen]


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_network_trains_as_the_official_one(edit: Callable[[HiFuse], None]) -> None:
    images, model, again = some_images(), narrow(), narrow()
    edit(model)
    edit(again)
    with official():
        expected = two_steps(again, images)
    assert_same(two_steps(model, images), expected)


@pytest.mark.parametrize("kind", [nn.Linear, Conv2d, ConvNorm, BatchNorm2d, DropPath, InvertedMLP, WindowAttention])
def test_a_forward_that_is_put_on_a_class_counts(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """As libraries put adapters and other precisions on PyTorch's classes, and users theirs on ours."""
    images, before, forward = some_images(), narrow()(some_images()), kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args, **named: 1.5 * forward(self, *args, **named))
    with official():
        expected = narrow()(images)
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(narrow()(images), expected)
    with pytest.raises(ValueError, match=f"has a forward that was put on its class, .*{kind.__name__}: put the original"):
        optimize_for_inference(narrow(), torch.float64, backend="reference")


@pytest.mark.parametrize("whole_class", [False, True])
def test_another_way_to_convolve(whole_class: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As users replace `_conv_forward` to pad otherwise."""
    images, model = some_images(), narrow()

    def padded_by_ones(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        sides = [side for padding in reversed(conv.padding) for side in (padding, padding)]  # type: ignore[arg-type]
        x = F.pad(x, sides, value=1.0) if any(sides) else x
        return F.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    before = model(images)
    if whole_class:
        monkeypatch.setattr(nn.Conv2d, "_conv_forward", padded_by_ones)
    else:
        for conv in [each for each in model.modules() if isinstance(each, nn.Conv2d)]:
            conv._conv_forward = padded_by_ones.__get__(conv)  # type: ignore[method-assign]
    with official():
        expected = model(images)
    assert not torch.allclose(expected, before, rtol=1e-3)
    assert_same([model(images)], [expected])
    with pytest.raises(ValueError, match=r"cannot be frozen: .* has a (forward that was put|_conv_forward of its own)"):
        optimize_for_inference(model, torch.float64, backend="reference")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripts_are_refused_by_name() -> None:
    model = narrow()
    for module in (model, model.layers1.blocks[0], model.fu1, model.stages[0], model.patch_embed.norm):
        with pytest.raises(RuntimeError, match=f"torch.jit.script cannot take {type(module).__name__}: torch.export.export"):
            torch.jit.script(module)
