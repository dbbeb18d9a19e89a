"""What freezing reads of a model: each attribute of a module counts or is refused by name, as are hooks and other classes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hifuse_fast import HiFuse, load_optimized, optimize_for_inference
from hifuse_fast.blocks import HFFBlock
from hifuse_fast.edits import tree
from hifuse_fast.inference.source import READ
from hifuse_fast.layers import Conv2d
from tests.support.frozen import image, make, run
from tests.support.official import official_copy

X = image(1, 40, 33)
OF_EVERY_MODULE = set(vars(nn.Module()))
SETTINGS = r"(.*\.)?(eps|shift_size|channel_gate)"


@pytest.fixture(scope="module")
def model() -> Any:
    """Changed and put back by tests."""
    return make()


@pytest.fixture(scope="module")
def before(model: Any) -> Tensor:
    return run(model, X)


def frozen(model: nn.Module, **options: Any) -> Any:
    return optimize_for_inference(model, torch.float64, backend="reference", **options)


def assert_frozen_is(model: nn.Module, expected: Tensor) -> None:
    torch.testing.assert_close(frozen(model)(X), expected, rtol=1e-9, atol=1e-9)


# ---- Attributes ----------------------------------------------------------------------------------------------------------


def other(name: str, value: Any) -> Any:
    """Another value of the same type."""
    chosen = {"channel_gate": "double_sigmoid", "padding_mode": "circular", "weight_shapes": {}}
    if name == "options":
        return replace(value, channel_gate="double_sigmoid", window_size=3)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value - 1 if name == "shift_size" and value else value + 1
    if isinstance(value, float):
        return 3 * value + 0.125
    if isinstance(value, (tuple, list)) and value and isinstance(value[0], int):
        return type(value)([value[0] + 1, *value[1:]])
    return chosen.get(name, 3)


def attributes(model: nn.Module, one_of_a_kind: bool) -> Iterator[tuple[str, nn.Module, str]]:
    """Each attribute that a module has of its own: of all modules of the model, or of the last one of a class."""
    found = {}
    for place, module in tree(model):
        for name in set(vars(module)) - OF_EVERY_MODULE:
            found[(type(module), name) if one_of_a_kind else (re.sub(r"\.\d+", ".#", place), name)] = (place, module, name)
    yield from sorted(found.values(), key=lambda each: (each[0], each[2]))


def check_attributes(model: nn.Module, before: Tensor, one_of_a_kind: bool) -> None:
    read, refused = [], []
    for place, module, name in attributes(model, one_of_a_kind):
        path = f"{place}.{name}".lstrip(".")
        value = getattr(module, name)
        setattr(module, name, other(name, value))
        try:
            network = frozen(model)
        except ValueError as error:
            assert path in str(error), path  # noqa: PT017
            refused.append(name)
        else:
            expected = run(model, X)
            torch.testing.assert_close(network(X), expected, rtol=1e-9, atol=1e-9, msg=path)
            if not torch.equal(expected, before):
                read.append(path)
        finally:
            setattr(module, name, value)
    assert all(re.fullmatch(SETTINGS, path) for path in read), read
    assert {path.rpartition(".")[2] for path in read} == set(READ)
    assert {"stride", "padding", "dilation", "groups", "padding_mode", "num_heads", "window_size"} <= set(refused)


def test_each_attribute_of_each_class_counts_or_is_refused(model: Any, before: Tensor) -> None:
    check_attributes(model, before, one_of_a_kind=True)


@pytest.mark.slow
def test_each_attribute_of_each_place_counts_or_is_refused(model: Any, before: Tensor) -> None:
    check_attributes(model, before, one_of_a_kind=False)


def set_everything(model: Any) -> None:
    """Another eps at each norm, another shift at each block, another gate at one fusion."""
    for i, (_, module) in enumerate(tree(model)):
        if hasattr(module, "eps"):
            module.eps = 0.01 + 0.003 * i
        if hasattr(module, "shift_size"):
            module.shift_size = (module.shift_size + 1) % module.window_size
    model.fu2.channel_gate = "double_sigmoid"


def test_all_settings_at_once_in_every_dtype_and_from_a_file(tmp_path: Path) -> None:
    model = make()
    set_everything(model)
    expected = run(model, X)
    network = frozen(model)
    torch.testing.assert_close(network(X), expected, rtol=1e-9, atol=1e-9)
    network.save(tmp_path / "network.safetensors")
    loaded = load_optimized(tmp_path / "network.safetensors")
    assert torch.equal(loaded(X), network(X))
    assert loaded.configuration == network.configuration
    assert len(network.configuration.settings) > 30
    fast = optimize_for_inference(model.float())
    torch.testing.assert_close(fast(X.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_backbone_and_a_gate_of_the_call() -> None:
    model = make(features_only=True, out_indices=(1, 3))
    model.conv_norm.eps = 0.5  # which nothing uses there
    set_everything(model)
    for actual, expected in zip(frozen(model)(X), run(model, X), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    whole = make()
    whole.fu3.channel_gate = "double_sigmoid"
    all_double = make(channel_gate="double_sigmoid")
    torch.testing.assert_close(frozen(whole, channel_gate="double_sigmoid")(X), run(all_double, X), rtol=1e-9, atol=1e-9)
    for block in (whole.fu1, whole.fu2, whole.fu4):
        block.channel_gate = "double_sigmoid"
    network = frozen(whole)
    assert (network.options.channel_gate, dict(network.configuration.settings)) == ("double_sigmoid", {})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("fu1.norm2.eps", 0.0, r"fu1\.norm2\.eps must be a positive number, got 0\.0"),
        ("fu1.W_l.bn.eps", "small", r"fu1\.W_l\.bn\.eps must be a positive number, got 'small'"),
        ("layers2.blocks.1.attn.shift_size", 4, r"layers2\.blocks\.1\.attn\.shift_size must be below window_size = 4, got 4"),
        ("fu4.channel_gate", "none", r"fu4\.channel_gate must be one of sigmoid, double_sigmoid, got 'none'"),
        ("layers1.blocks.0.attn.num_heads", 4, r"layers1\.blocks\.0\.attn\.num_heads must be 2 as its options say, got 4"),
    ],
)
def test_values_that_do_not_fit_are_named(path: str, value: Any, message: str) -> None:
    model = make()
    place, _, name = path.rpartition(".")
    setattr(model.get_submodule(place), name, value)
    with pytest.raises(ValueError, match=message):
        frozen(model)


# ---- Weights -------------------------------------------------------------------------------------------------------------


def test_none_is_ones_and_zeros() -> None:
    model, same = make(), make()
    with torch.no_grad():
        for each in ("layers2.blocks.0.norm1", "stages.1.0.norm", "fu1.norm2", "fu3.norm3", "conv_norm", "fu2.W_l.bn"):
            same.get_submodule(each).weight.fill_(1)
            same.get_submodule(each).bias.zero_()
            model.get_submodule(each).weight = model.get_submodule(each).bias = None
        for each in ("layers2.blocks.0.attn.qkv", "layers3.blocks.0.fc1", "stages.0.0.pwconv", "fu2.norm1", "conv_head"):
            same.get_submodule(each).bias.zero_()
            model.get_submodule(each).bias = None
    assert_frozen_is(model, run(same, X))


def test_the_classifier_alone_may_be_a_new_one() -> None:
    model = make()
    model.conv_head, model.head = nn.Linear(32, 7).double(), nn.Linear(3, 2)
    network = frozen(model.eval())
    assert network.num_classes == network.options.num_classes == 7
    torch.testing.assert_close(network(X), run(model, X), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(frozen(official_copy(model))(X), run(model, X), rtol=1e-9, atol=1e-9)
    model.conv_head = nn.Identity()
    torch.testing.assert_close(frozen(model.eval())(X), run(model, X), rtol=1e-9, atol=1e-9)
    model.conv_head = nn.Sequential(nn.Dropout(), nn.Linear(32, 7).double())
    with pytest.raises(ValueError, match=r"conv_head is a .*container\.Sequential, where HiFuse has a .*Linear"):
        frozen(model.eval())


# ---- Hooks, methods, classes ---------------------------------------------------------------------------------------------


class Mine(HFFBlock):
    def forward(self, *maps: Any) -> Tensor:
        return 2 * super().forward(*maps)


class Adapter(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias, self.base_forward = base.weight, base.bias, base.forward

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base_forward(x)


class Halved(nn.Linear):
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._parameters["weight"] / 2


class Doubling(HiFuse):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return 2 * super().forward_head(x, pre_logits)


class WithLoss(HiFuse):
    """It only adds to the network."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.criterion, self.history = nn.CrossEntropyLoss(), [1.0]

    def loss(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.criterion(self(images), classes)


def reclassed(place: str, cls: type[nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.get_submodule(place).__class__ = cls

    return change


def hooked(place: str, kind: str) -> Callable[[Any], None]:
    return lambda model: getattr(model.get_submodule(place), f"register_{kind}")(lambda *_: None)


def with_method(place: str, name: str) -> Callable[[Any], None]:
    return lambda model: setattr(model.get_submodule(place), name, lambda *args: 0)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a hook": (hooked("fu2.residual.conv1.conv", "forward_hook"), r"fu2\.residual\.conv1\.conv has a forward hook, .*lambda"),
    "a pre-hook": (hooked("stages.1", "forward_pre_hook"), r"stages\.1 has a forward pre-hook"),
    "a backward hook": (hooked("layers1.blocks.0.attn.qkv", "full_backward_hook"), r"attn\.qkv has a backward hook"),
    "a backward pre-hook": (hooked("fu1", "full_backward_pre_hook"), "fu1 has a backward pre-hook"),
    "a hook on dropout": (hooked("pos_drop", "forward_hook"), "pos_drop has a forward hook"),
    "a hook on the model": (hooked("", "forward_hook"), "it has a forward hook"),
    "spectral_norm": (lambda m: nn.utils.spectral_norm(m.fu1.W_l.conv), r"fu1\.W_l\.conv has a .*hook, .*SpectralNorm"),
    "weight_norm": (lambda m: nn.utils.weight_norm(m.layers2.downsample.reduction), r"reduction has a .*hook, .*WeightNorm"),
    "prune": (lambda m: prune.l1_unstructured(m.conv_head, "weight", 3), "conv_head has a .*hook, .*L1Unstructured"),
    "parametrizations": (lambda m: parametrizations.weight_norm(m.fu2.W3.conv), r"W3\.conv has a parametrization of weight"),
    "a subclass of a block": (reclassed("fu3", Mine), r"fu3 has a forward of its own, of .*test_source\.Mine, .*HFFBlock"),
    "forward_head": (reclassed("", Doubling), r"it has a forward_head of its own, of .*Doubling"),
    "a forward of an instance": (with_method("stages.1.0", "forward"), r"stages\.1\.0 has a forward of its own"),
    "a method of an instance": (with_method("", "forward_features"), "it has a forward_features of its own"),
    "a private method": (with_method("fu2", "_spatial_gate"), "fu2 has a _spatial_gate of its own"),
    "an adapter": (lambda m: setattr(m.stages[0][1], "pwconv", Adapter(m.stages[0][1].pwconv)), r"0\.1\.pwconv is a .*Adapter"),
    "another activation": (lambda m: m.fu1.se.__setitem__(1, nn.SiLU()), r"fu1\.se\.1 is a .*SiLU, where HiFuse has a .*ReLU"),
    "another padding": (lambda m: setattr(m.fu1.spatial, "conv", nn.Conv2d(2, 1, 7, bias=False)), r"spatial\.conv is a "),
    "one more in a stage": (lambda m: m.stages[0].append(nn.Softplus()), r"stages\.0 must have the modules .*, got .*'2'"),
    "one less": (lambda m: m.stages[0].pop(1), r"stages\.0 must have the modules .*'1'\], got \['0'\]"),
    "a step before a stage": (lambda m: setattr(m.layers1, "downsample", nn.Tanh()), r"layers1 has a .*Tanh for its d"),
    "a norm without weights where none is": (
        lambda m: setattr(m.fu1.residual.conv1, "bn", nn.BatchNorm2d(24, affine=False, track_running_stats=False)),
        r"fu1\.residual\.conv1 has a .*BatchNorm2d for its bn, where HiFuse has None",
    ),
    "a weight that is computed": (reclassed("stages.0.0.pwconv", Halved), r"pwconv has a weight of its own, of .*Halved"),
    "another weight": (lambda m: setattr(m.fu1, "aux", nn.Linear(2, 2)), r"2 unexpected: fu1\.aux\.weight"),
    "a sparse weight": (lambda m: setattr(m.fu1.W_l.bn, "running_var", torch.ones(8).to_sparse()), r"running_var is not dense"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_left_out_is_refused_by_name(kind: str) -> None:
    change, message = REFUSED[kind]
    model = make()
    change(model)
    with pytest.raises(ValueError, match=message):
        frozen(model.eval())


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_hooks_of_all_modules(kind: str, model: Any) -> None:
    handle = getattr(nn.modules.module, f"register_module_{kind}")(lambda *_: None)
    try:
        with pytest.raises(ValueError, match=r"all modules have a (forward|backward)"):
            frozen(model)
    finally:
        handle.remove()


def test_what_changes_nothing_is_taken(model: Any, before: Tensor) -> None:
    """Hooks on what no forward calls, classes that only add, modules as good, blocks that are compiled."""
    changed = copy.deepcopy(model)
    for place in ("head", "norm", "layers1.blocks.0.norm2", "fu1.W3.conv", "fu2.norm2"):
        changed.get_submodule(place).register_forward_hook(lambda *_: None)
    changed.__class__ = WithLoss
    changed.criterion = nn.CrossEntropyLoss().eval()
    changed.pos_drop = nn.Identity().eval()
    changed.note = "mine"
    changed.get_extra_state = lambda: {"epoch": 3}  # type: ignore[method-assign]
    for each in changed.modules():
        each.register_state_dict_post_hook(lambda module, state, *_: state.update(dict.fromkeys(state)))
    nn.SyncBatchNorm.convert_sync_batchnorm(changed)
    changed.fu2 = torch.compile(changed.fu2)
    assert_frozen_is(changed.eval(), before)


# ---- Classes of the official code -----------------------------------------------------------------------------------------


def test_an_official_instance_says_eps_and_shift(model: Any) -> None:
    """The official block has the shift, not its attention; classes of layer norms are its own."""
    changed = copy.deepcopy(model)
    set_everything(changed)
    changed.fu2.channel_gate = "sigmoid"  # the official class has none
    assert_frozen_is(official_copy(changed), run(changed, X))


def linear_of_its_own(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hooked("fu1.W_l.conv", "forward_hook"), r"fu1\.W_l\.conv has a forward hook"),
        (hooked("fu1", "forward_pre_hook"), r"fu1 has a forward pre-hook"),
        (lambda m: setattr(m.stages[0][0], "pwconv", Adapter(m.stages[0][0].pwconv)), r"stages\.0\.0\.pwconv is a .*Adapter"),
        (lambda m: setattr(m.fu1.W_l.conv, "forward", linear_of_its_own), r"fu1\.W_l\.conv has a forward of its own, set on"),
        (lambda m: setattr(m.fu1, "forward", linear_of_its_own), r"fu1 has a forward of its own, set on the instance"),
        (lambda m: setattr(m.fu1.W_l.conv, "stride", (2, 2)), r"fu1\.W_l\.conv\.stride must be \(1, 1\)"),
        (reclassed("fu2.W_g.conv", Conv2d), None),
    ],
)
def test_an_official_instance_that_was_edited(model: Any, change: Any, message: str | None) -> None:
    official = official_copy(model)
    change(official)
    official.eval()
    if message is None:
        frozen(official)
    else:
        with pytest.raises(ValueError, match=message):
            frozen(official)


def test_nothing_that_is_done_to_the_model_later_counts() -> None:
    model = make()
    expected = run(model, X)
    network = frozen(model)
    set_everything(model)
    model.fu1.register_forward_hook(lambda *_: 1 / 0)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    torch.testing.assert_close(network(X), expected, rtol=1e-9, atol=1e-9)
