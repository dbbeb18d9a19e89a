"""What a user hangs on the modules of a network, or puts in their place, has its effect."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.modules import module as hooks
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import hifuse_fast
from hifuse_fast.layers import Conv2d
from tests.support import modules
from tests.support.modules import UNUSED, assert_same, official, two_steps


def is_used(name: str) -> bool:
    return re.fullmatch(UNUSED, name) is None


def narrow(**options: object) -> hifuse_fast.HiFuse:
    torch.manual_seed(0)
    sizes = {"dims": (16, 32, 48, 64), "num_heads": (1, 2, 2, 2), "depths": (2, 1, 1, 1), "conv_depths": (1, 1, 1, 1)}
    return hifuse_fast.HiFuse(3, **{**sizes, **options}).double().eval()  # type: ignore[arg-type]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 40, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_module_is_called_and_its_hooks_run(images: Tensor) -> None:
    model, called = narrow(), set()
    expected = model(images)
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, args, out, name=name: called.add(name))
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    assert called == {name for name, module in model.named_modules() if is_used(name) and not isinstance(module, nn.ModuleList)}


def test_one_hook_on_any_module_runs_and_may_change_its_output(images: Tensor) -> None:
    """A module of each kind: of those whose names differ by numbers alone one, of another stage for the next kind."""
    model, images = narrow(depths=(1, 1, 1, 1)), images[:, :, :32, :32]
    expected = model(images)
    kinds: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if is_used(name) and not isinstance(module, nn.ModuleList):
            kinds.setdefault(re.sub(r"\d", "", name), []).append(name)
    for turn, names in enumerate(kinds.values()):
        name = names[turn % len(names)]
        module = model.get_submodule(name)
        handle = module.register_forward_hook(lambda m, args, out: out * 1.5 + 0.25)
        assert not torch.allclose(model(images), expected, rtol=1e-9, atol=1e-9), name
        handle.remove()


def test_backward_hooks_of_all_modules_and_of_all_gradients(images: Tensor) -> None:
    """Hooks of every kind that PyTorch has for all modules run, and what they are given is what the official network gives."""
    model, seen = narrow(depths=(1, 1, 1, 1)).train(), []
    images.requires_grad_()  # without, PyTorch warns of the hooks on the first modules
    kinds = {
        "forward": hooks.register_module_forward_hook,
        "before forward": hooks.register_module_forward_pre_hook,
        "backward": hooks.register_module_full_backward_hook,
        "before backward": hooks.register_module_full_backward_pre_hook,
    }
    weights = [p for name, p in model.named_parameters() if is_used(name.rpartition(".")[0])]
    with official():
        expected = torch.autograd.grad(model(images).square().sum(), weights)
    names = {each: name for name, each in model.named_modules()}
    called = {name for name in names.values() if is_used(name) and not isinstance(model.get_submodule(name), nn.ModuleList)}
    for kind, register in kinds.items():
        found: set[str] = set()
        handle = register(lambda m, *_, found=found: found.add(names[m]))
        try:
            out = model(images).square().sum()
            several = register_multi_grad_hook(weights, lambda grads, kind=kind: seen.append((kind, grads)))
            out.backward()
        finally:
            handle.remove()
        several.remove()
        assert found == called, kind
        assert seen[-1][0] == kind
        for grad, want in zip(seen[-1][1], expected, strict=True):
            torch.testing.assert_close(grad, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm, parametrizations.weight_norm, parametrizations.spectral_norm,
                                  lambda m: prune.l1_unstructured(m, "weight", 0.5)])  # fmt: skip
def test_reparametrised_weights_train(wrap: Callable[[nn.Module], nn.Module], images: Tensor) -> None:
    model, again = modules.narrow(), modules.narrow()
    for each in (model, again):
        torch.manual_seed(0)  # spectral_norm begins at a random vector
        for module in [m for m in each.modules() if isinstance(m, nn.Linear | nn.Conv2d)]:
            wrap(module)
    with official():
        expected = two_steps(again, images)
    assert_same(two_steps(model, images), expected)
    used = [p for n, p in model.layers1.blocks[0].attn.named_parameters()]
    assert all(p.grad is not None for p in used)


def test_a_replaced_convolution_gets_channels_first(images: Tensor) -> None:
    model = narrow()
    expected = model(images)
    changed = copy.deepcopy(model)
    for module in list(changed.modules()):
        for name, child in list(module.named_children()):
            if type(child) is Conv2d:
                new = nn.Conv2d(child.in_channels, child.out_channels, child.kernel_size, child.stride, child.padding,
                                groups=child.groups, bias=child.bias is not None, dtype=torch.float64)  # fmt: skip
                new.load_state_dict(child.state_dict())
                setattr(module, name, new)
    torch.testing.assert_close(changed(images), expected, rtol=1e-9, atol=1e-9)


def test_norms_without_weights_are_ones_and_zeros(images: Tensor) -> None:
    model = narrow()
    expected = model(images)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.weight = module.bias = None  # they were ones and zeros
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("first", ["reference", "auto"])
def test_recomputation_takes_the_backend_of_the_forward(first: str, images: Tensor) -> None:
    model = narrow().float().train()
    model.set_grad_checkpointing()
    with hifuse_fast.use_backend(first):
        loss = model(images.float()).square().sum()
    with hifuse_fast.use_backend("auto" if first == "reference" else "reference"):
        loss.backward()


def test_a_checkpointed_network_is_differentiated_twice(images: Tensor) -> None:
    model, found = narrow(depths=(1, 1, 1, 1)), []
    for enable in (False, True):
        model.train().set_grad_checkpointing(enable)
        x = images.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), model.layers1.blocks[0].attn.qkv.weight)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_checkpointing_compiles(images: Tensor) -> None:
    plain = narrow(depths=(1, 1, 1, 1)).train()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain(images).square().sum().backward()
    compiled(images).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), model.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, msg=name)
    for a, b in zip(plain.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(b, a)


def test_a_tied_weight_is_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = narrow().float()
    model.head.weight = model.conv_head.weight
    hifuse_fast.save_checkpoint(model, tmp_path / "tied.safetensors")
    again = hifuse_fast.create_model_from_checkpoint(tmp_path / "tied.safetensors")
    assert torch.equal(again.head.weight, model.conv_head.weight)


def test_adapters_of_peft(images: Tensor) -> None:
    peft = pytest.importorskip("peft")
    model = modules.narrow()
    expected = model(images)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and getattr(m, "groups", 1) == 1]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=names)).double().eval()
    torch.testing.assert_close(adapted(images), expected, rtol=1e-9, atol=1e-9)
    generator = torch.Generator().manual_seed(0)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.05, generator=generator)
    again = copy.deepcopy(adapted)
    with official():
        expected = two_steps(again, images)
    assert_same(two_steps(adapted, images), expected)
    loras = [
        p
        for n, p in adapted.named_parameters()
        if "lora_B" in n and is_used(n.removeprefix("base_model.model.").partition(".lora_B")[0])
    ]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in loras)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(images), expected[-1], rtol=1e-7, atol=1e-7)
    frozen = hifuse_fast.optimize_for_inference(merged, torch.float64, backend="reference")
    torch.testing.assert_close(frozen(images), expected[-1], rtol=1e-7, atol=1e-7)


def test_grad_cam(images: Tensor) -> None:
    cam = pytest.importorskip("pytorch_grad_cam")
    model = narrow().float()
    found = []
    for backend in ("auto", "reference"):
        tool = cam.GradCAM(model, [model.stages[3], model.fu3], reshape_transform=hifuse_fast.reshape_transform)
        with hifuse_fast.use_backend(backend), tool:
            found.append(torch.from_numpy(tool(images.float(), None)))
    assert found[0].shape == (2, 40, 64)
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
