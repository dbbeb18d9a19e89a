"""The network: options, image sizes, initial weights, timm's methods, checkpointing of gradients, tracing, errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hifuse_fast
from hifuse_fast import HiFuse, create_model, list_models
from hifuse_fast.testing import golden_image, golden_weights, relative_error

# Widths that do not double, heads that give head_dim 4, windows of 4.
SMALL: dict[str, Any] = {"dims": (8, 12, 20, 32), "depths": (2, 1, 2, 1), "num_heads": (2, 3, 5, 8), "window_size": 4}


@pytest.fixture(autouse=True)
def plain_pytorch() -> Any:
    with hifuse_fast.use_backend("reference"):
        yield


def small(num_classes: int = 5, **options: Any) -> HiFuse:
    """A small network in float64 with golden weights, in eval mode."""
    model = create_model("hifuse_tiny", num_classes, dtype=torch.float64, **{**SMALL, **options})
    golden_weights(model)
    return model.eval()


@pytest.fixture(scope="module")
def model() -> HiFuse:
    return small()


# (sum, norm) of tensors of the official HiFuse_Tiny(7) right after torch.manual_seed(0).
OFFICIAL_INITIAL_WEIGHTS = {
    "downsample_layers.0.0.weight": (24.742318944070576, 13.698695209680485),
    "stages.2.1.dwconv.weight": (-19.23090863346988, 11.959193019780278),
    "conv_head.weight": (-0.5108486341778189, 1.4808507400820052),
    "layers1.blocks.1.attn.relative_position_bias_table": (-0.31531693444776465, 0.4535771211579392),
    "layers3.blocks.0.attn.qkv.weight": (10.934170386582913, 13.310753946466548),
    "layers4.downsample.reduction.weight": (-8.26071565634238, 21.746040491310126),
    "head.weight": (1.3988567921032882, 1.4720920023512662),
    "fu1.se.0.weight": (1.6949314869416412, 1.4590938383081011),
    "fu2.Updim.conv.bias": (0.2128336476162076, 0.8091824891243198),
    "fu4.residual.conv3.conv.weight": (1.6138603454646612, 16.000213735641417),
}


def test_the_initial_weights_are_the_official_ones() -> None:
    torch.manual_seed(0)
    state_dict = create_model("hifuse_tiny", 7).state_dict()
    for name, (total, norm) in OFFICIAL_INITIAL_WEIGHTS.items():
        tensor = state_dict[name].double()
        assert tensor.sum().item() == pytest.approx(total, rel=1e-6, abs=1e-5), name
        assert tensor.norm().item() == pytest.approx(norm, rel=1e-6), name
    assert torch.rand(1).item() == pytest.approx(0.05579286813735962)  # as many draws as the official constructor


def test_parameter_counts() -> None:
    counts = [sum(p.numel() for p in create_model(name, 7, device="meta").parameters()) for name in list_models()]
    assert [round(count / 1e6, 2) for count in counts] == [119.69, 123.27, 134.01]


# --- images


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (96, 160), (1, 1), (33, 50), (224, 31)])
def test_any_image_size(model: HiFuse, height: int, width: int) -> None:
    image = golden_image(2, height, width)
    padded = F.pad(image, (0, -width % 32, 0, -height % 32))
    with torch.no_grad():
        logits = model(image)
        assert torch.equal(logits, model(padded))
        assert model.forward_features(image).shape == (2, 32, padded.shape[2] // 32, padded.shape[3] // 32)
    assert logits.shape == (2, 5)
    assert torch.isfinite(logits).all()


def test_images_do_not_see_one_another(model: HiFuse) -> None:
    images = golden_image(3, 64, 96)
    with torch.no_grad():
        assert relative_error(torch.cat([model(image[None]) for image in images]), model(images)) < 1e-12


def test_strides_of_the_image_do_not_matter(model: HiFuse) -> None:
    image = golden_image(2, 64, 64)
    with torch.no_grad():
        for other in (
            image.to(memory_format=torch.channels_last),
            image.repeat(1, 1, 1, 2)[..., :64],
            image.mT.contiguous().mT,
        ):
            assert relative_error(model(other), model(image)) < 1e-12


def test_a_batch_of_none(model: HiFuse) -> None:
    with torch.no_grad():
        assert model(torch.zeros(0, 3, 40, 64, dtype=torch.float64)).shape == (0, 5)
        assert small(0)(torch.zeros(0, 3, 32, 32, dtype=torch.float64)).shape == (0, 32)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (None, TypeError, r"images must be a torch\.Tensor, got NoneType"),
        (torch.zeros(3, 32, 32), ValueError, r"images must be \[B, 3, H, W\].*got \[3, 32, 32\]"),
        (torch.zeros(1, 1, 32, 32), ValueError, r"images must be \[B, 3, H, W\].*got \[1, 1, 32, 32\]"),
        (torch.zeros(1, 3, 0, 32), ValueError, r"H and W at least 1, got \[1, 3, 0, 32\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), TypeError, r"floating point, got torch\.uint8"),
        (torch.zeros(1, 3, 32, 32), TypeError, r"images must be torch\.float64 .*got torch\.float32"),
        (torch.zeros(1, 3, 32, 32, device="meta"), ValueError, "images must be on the model's device, cpu, got meta"),
    ],
)
def test_images_that_do_not_fit(model: HiFuse, images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model(images)


def test_the_layout_of_the_weights_does_not_matter(model: HiFuse) -> None:
    image = golden_image(2, 64, 64)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert not other.fu1.residual.conv1.conv.weight.is_contiguous()
    with torch.no_grad():
        assert relative_error(other(image), model(image)) < 1e-12
    assert list(other.state_dict()) == list(model.state_dict())


# --- options


@pytest.mark.parametrize(
    "options",
    [
        {"mixer": "depthwise"},
        {"channel_gate": "double_sigmoid"},
        {"in_chans": 1},
        {"conv_depths": (1, 2, 1, 3)},
        {"qkv_bias": False},
        {"dims": (48, 10, 6, 8), "num_heads": (1, 2, 3, 4)},
        {"window_size": 1},
        {"window_size": 16},
    ],
)
def test_every_option_makes_a_network_that_trains(options: dict[str, Any]) -> None:
    model = small(**options).train()
    logits = model(golden_image(2, 64, 96)[:, : model.in_chans])
    logits.square().sum().backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_the_gates_and_mixers_differ(model: HiFuse) -> None:
    image = golden_image(1, 32, 32)
    assert not torch.equal(small(channel_gate="double_sigmoid")(image), model(image))
    depthwise = small(mixer="depthwise")
    assert depthwise.fu2.residual.conv1.conv.weight.shape == (36, 1, 3, 3)
    assert model.fu2.residual.conv1.conv.weight.shape == (36, 36, 3, 3)


def test_shifts_alternate_and_stay_on_where_one_window_is_the_whole_map() -> None:
    model = create_model("hifuse_small", 7, device="meta")
    stages = (model.layers1, model.layers2, model.layers3, model.layers4)
    shifts = [[block.attn.shift_size for block in stage.blocks] for stage in stages]
    assert shifts == [[0, 3], [0, 3], [0, 3, 0, 3, 0, 3], [0, 3]]


def test_rates_of_stochastic_depth_rise_over_the_blocks() -> None:
    options = {"drop_path_rate": 0.5, "conv_drop_path_rate": 0.2, "hff_drop_path_rate": 0.3, "conv_depths": (1, 1, 2, 1)}
    model = small(**options)
    stages = (model.layers1, model.layers2, model.layers3, model.layers4)
    assert [b.drop_path.rate for s in stages for b in s.blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [b.drop_path.rate for s in model.stages for b in s] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [fu.drop_path.rate for fu in (model.fu1, model.fu2, model.fu3, model.fu4)] == [0.3] * 4


@pytest.mark.parametrize("rate", ["drop_rate", "attn_drop_rate", "drop_path_rate", "conv_drop_path_rate", "hff_drop_path_rate"])
def test_each_rate_acts_in_training_only(model: HiFuse, rate: str) -> None:
    dropping = small(**{rate: 0.6})
    image = golden_image(2, 64, 64)
    with torch.no_grad():
        assert torch.equal(dropping(image), model(image))
        dropping.train()
        torch.manual_seed(0)
        first, second = dropping(image), dropping(image)
        torch.manual_seed(0)
        again = dropping(image)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": -1}, ValueError, "num_classes must be at least 0, got -1"),
        ({"num_classes": 2.0}, TypeError, r"num_classes must be an integer, got 2\.0"),
        ({"in_chans": 0}, ValueError, "in_chans must be at least 1"),
        ({"dims": (8, 16, 32)}, ValueError, "dims must be 4 integers"),
        ({"dims": 96}, ValueError, "dims must be 4 integers"),
        ({"depths": (2, 2, 0, 2)}, ValueError, r"depths\[2\] must be at least 1"),
        ({"conv_depths": (2, 2, True, 2)}, TypeError, r"conv_depths\[2\] must be an integer"),
        ({"num_heads": (3, 6, 12, 25)}, ValueError, r"num_heads\[3\] must divide the width 768, got 25"),
        ({"window_size": 17}, ValueError, "window_size must be from 1 to 16"),
        ({"qkv_bias": "yes"}, TypeError, "qkv_bias must be True or False"),
        ({"channel_gate": "relu"}, ValueError, "channel_gate must be one of sigmoid, double_sigmoid, got 'relu'"),
        ({"mixer": None}, ValueError, "mixer must be one of dense, depthwise, got None"),
        ({"drop_rate": float("nan")}, ValueError, "drop_rate must be at least 0 and below 1, got nan"),
        ({"drop_path_rate": 1.0}, ValueError, "drop_path_rate must be at least 0 and below 1"),
        ({"hff_drop_path_rate": "0"}, TypeError, "hff_drop_path_rate must be a number"),
        ({"window": 7}, TypeError, "unknown option window; the options are in_chans, dims,"),
        ({"out_indices": (0,)}, TypeError, "unknown option out_indices"),
        ({"features_only": True, "out_indices": (4,)}, ValueError, "out_indices must be stages 0 to 3"),
        ({"features_only": True, "out_indices": ()}, ValueError, "out_indices must be a sequence"),
        ({"dtype": torch.int8}, TypeError, "dtype must be a floating-point dtype"),
    ],
)
def test_an_option_that_does_not_fit_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_model("hifuse_tiny", device="meta", **options)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="name must be one of hifuse_tiny, hifuse_small, hifuse_base, got 'hifuse_huge'"):
        create_model("hifuse_huge")


# --- timm's methods


def test_head_and_features_make_the_logits(model: HiFuse) -> None:
    image = golden_image(2, 64, 64)
    with torch.no_grad():
        features = model.forward_features(image)
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.num_features)
        assert torch.equal(model.forward_head(features), model(image))
        assert torch.equal(model.get_classifier()(pooled), model(image))
        assert torch.equal(small(0)(image), pooled)


def test_reset_classifier(model: HiFuse) -> None:
    other = copy.deepcopy(model)
    other.reset_classifier(9)
    assert other(golden_image(1, 32, 32)).shape == (1, 9)
    assert [tuple(t.shape) for t in other.state_dict().values()] == [tuple(t.shape) for t in small(9).state_dict().values()]
    other.reset_classifier(0)
    assert list(other.state_dict()) == list(small(0).state_dict())


def test_features_only_gives_the_fused_maps(model: HiFuse) -> None:
    backbone = small(features_only=True, out_indices=(1, -1))
    assert backbone.feature_info.channels() == [12, 32]
    assert backbone.feature_info.reduction() == [8, 32]
    image = golden_image(2, 64, 96)
    with torch.no_grad():
        maps = backbone(image)
        stages = model.forward_stages(image)
    assert [tuple(x.shape) for x in maps] == [(2, 12, 8, 12), (2, 32, 2, 3)]
    assert torch.equal(maps[0], stages.fused_maps[1])
    assert torch.equal(maps[1], stages.fused_maps[3])
    assert create_model("hifuse_tiny", features_only=True, device="meta").num_classes == 0


def test_maps_are_views_of_channels_last_memory(model: HiFuse) -> None:
    with torch.no_grad():
        for maps in model.forward_stages(golden_image(2, 64, 96)):
            assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


# --- training


def training_step(model: HiFuse) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and every gradient and buffer after one step."""
    torch.manual_seed(3)
    logits = model(golden_image(2, 64, 64))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), {**gradients, **dict(model.named_buffers())}


def test_gradient_checkpointing_changes_nothing() -> None:
    options = {"drop_rate": 0.1, "drop_path_rate": 0.3, "hff_drop_path_rate": 0.3}
    logits, values = training_step(small(**options).train())
    model = small(**options).train()
    model.set_grad_checkpointing()
    other_logits, other_values = training_step(model)
    assert torch.equal(logits, other_logits)
    assert values.keys() == other_values.keys()
    for name, value in values.items():  # running statistics too: the second computation does not count the batch again
        assert torch.equal(value, other_values[name]), name
    assert model.fu1.W_l.bn.momentum == 0.1


def test_dead_parameters_are_the_ones_named_in_the_docstrings() -> None:
    model = small().train()
    training_step(model)
    dead = {name for name, p in model.named_parameters() if p.grad is None}
    unused = ["norm.", "head.", "fu1.Updim.", "fu1.norm1.", "fu1.W3."]
    unused += [f"fu{i}.{part}." for i in (2, 3, 4) for part in ("norm2", "W")]
    assert dead == {name for name, _ in model.named_parameters() if name.startswith(tuple(unused)) or ".norm2." in name} - {
        "fu1.norm2.weight",
        "fu1.norm2.bias",
    }


# --- where and how it runs


def test_building_on_the_meta_device_and_assigning_weights(model: HiFuse) -> None:
    with torch.device("meta"):
        outer = create_model("hifuse_tiny", 5, **SMALL)
    inner = create_model("hifuse_tiny", 5, device="meta", drop_path_rate=0.1, **SMALL)
    image = golden_image(1, 64, 64)
    for other in (outer, inner):
        assert all(t.is_meta for t in other.state_dict().values())
        other.load_state_dict(model.state_dict(), assign=True)
        assert torch.equal(other.eval()(image), model(image))


def test_a_network_that_is_made_and_called_on_fake_tensors() -> None:
    """As tools that plan memory and parallelism do. There is no data to draw."""
    with FakeTensorMode():
        model = create_model("hifuse_tiny", 5, **SMALL)
        assert model(torch.empty(2, 3, 33, 64)).shape == (2, 5)
        assert model.layers1.blocks[0].attn.qkv.weight.dtype == torch.float32


def test_autocast_takes_float32_images() -> None:
    model = small().float()
    image = golden_image(1, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(image.float())
        assert model(image.bfloat16()).dtype == torch.bfloat16
    assert relative_error(logits, small()(image)) < 0.1


def test_half_precision_weights() -> None:
    image = golden_image(1, 64, 64)
    logits = small().bfloat16()(image.bfloat16())
    assert logits.dtype == torch.bfloat16
    assert relative_error(logits, small()(image)) < 0.1


@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])  # which traces once more
def test_torch_compile_sees_one_graph(backend: str) -> None:
    # Every kind of block once: tracing takes its time by the block.
    model = small(depths=(2, 1, 1, 1), conv_depths=(1, 1, 1, 1))
    torch.compiler.reset()
    image = golden_image(1, 64, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        assert relative_error(compiled(image), model(image)) < 1e-12


@pytest.mark.slow
def test_torch_export_with_any_batch() -> None:
    model = small(depths=(2, 1, 1, 1))
    with torch.no_grad():
        exported = torch.export.export(model, (golden_image(2, 64, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        image = golden_image(3, 64, 64)
        assert relative_error(exported.module()(image), model(image)) < 1e-12
