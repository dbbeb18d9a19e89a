"""What save_checkpoint writes is what create_model_from_checkpoint reads; what could not be read again is not written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from hifuse_fast import (
    CheckpointError,
    HiFuse,
    create_model,
    create_model_from_checkpoint,
    describe_checkpoint,
    load_checkpoint,
    optimize_for_inference,
    save_checkpoint,
)
from hifuse_fast.checkpoints.read import OPTIONS, read_record
from hifuse_fast.edits import new_network

WIDTHS: dict[str, Any] = {
    "num_classes": 3, "in_chans": 1, "dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2,
}  # fmt: skip
TOLD: dict[str, Any] = {"channel_gate": "double_sigmoid", "drop_rate": 0.125, "drop_path_rate": 0.25}


@pytest.fixture
def model() -> HiFuse:
    return create_model("hifuse_tiny", **WIDTHS, **TOLD).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_gate_and_rates_survive(model: HiFuse, path: Path) -> None:
    save_checkpoint(nn.DataParallel(model), path)
    loaded = create_model_from_checkpoint(path)
    assert loaded.options == model.options
    assert loaded.fu1.channel_gate == "double_sigmoid"
    assert loaded.pos_drop.p == 0.125
    assert create_model_from_checkpoint(path, drop_rate=0.0).options.drop_rate == 0.0
    assert create_model_from_checkpoint(path, "double_sigmoid").options == model.options
    with pytest.raises(ValueError, match=r"channel_gate must be 'double_sigmoid' or None, as .* says, got 'sigmoid'"):
        create_model_from_checkpoint(path, "sigmoid")
    with pytest.raises(ValueError, match="channel_gate must be one of"):
        create_model_from_checkpoint(path, "none")


def test_a_file_without_options_is_deduced(model: HiFuse, path: Path) -> None:
    safetensors.torch.save_file(model.state_dict(), path)
    assert create_model_from_checkpoint(path).options.channel_gate == "sigmoid"
    assert create_model_from_checkpoint(path, "double_sigmoid").options.channel_gate == "double_sigmoid"


def test_options_that_are_not_those_of_the_weights(model: HiFuse, path: Path) -> None:
    values = model.options.to_dict()
    for changed, message in (
        ({**values, "depths": [1, 1, 1, 10**9]}, r"options say depths = \(1, 1, 1, 1000000000\), its weights \(1, 1, 1, 1\)"),
        ({**values, "num_classes": 10**400}, "options in its metadata do not fit: num_classes must be at most"),
        ({**values, "mixer": "depthwise"}, "its options say mixer = depthwise, its weights dense"),
        ({"dims": values["dims"]}, "missing option"),
        ([], "options must be a mapping"),
    ):
        safetensors.torch.save_file(model.state_dict(), path, {OPTIONS: json.dumps(changed)})
        with pytest.raises(CheckpointError, match=message):
            create_model_from_checkpoint(path)
    for text in ("{", "[" * 10**5):
        safetensors.torch.save_file(model.state_dict(), path, {OPTIONS: text})
        with pytest.raises(CheckpointError, match="options in its metadata do not fit"):
            create_model_from_checkpoint(path)
    weights = {name: x for name, x in model.state_dict().items() if name.startswith("fu")}
    safetensors.torch.save_file(weights, path, {OPTIONS: json.dumps(values)})
    with pytest.raises(CheckpointError, match="weights are missing"):
        create_model_from_checkpoint(path)


def test_one_network_is_built(model: HiFuse, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(model, path)
    torch.save({"net": model.state_dict()}, path.with_suffix(".pth"))
    built: list[int] = []
    begin = HiFuse.__init__
    monkeypatch.setattr(HiFuse, "__init__", lambda self, *args, **options: built.append(1) or begin(self, *args, **options))
    for file in (path, path.with_suffix(".pth")):
        built.clear()
        new_network.cache_clear()
        frozen = optimize_for_inference(create_model_from_checkpoint(file), backend="reference")
        assert frozen(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
        assert len(built) == 2  # the other one without memory: freezing compares the first with it


def test_counters_and_buffers_are_no_reason_to_refuse(model: HiFuse, path: Path) -> None:
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    more = {
        "layers1.blocks.0.attn_mask": torch.zeros(1, 4, 4),
        "fu1.total_ops": torch.zeros(1),
        "fu1.total_params": torch.zeros(1),
    }
    assert describe_checkpoint(weights | more)["num_classes"] == 3
    torch.save(weights | more, path)
    loaded = create_model_from_checkpoint(path)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in more.items():  # as thop leaves them on our own network too
        module, _, buffer = name.rpartition(".")
        model.get_submodule(module).register_buffer(buffer, tensor)
    save_checkpoint(model, path)
    assert load_checkpoint(path).keys() == loaded.state_dict().keys()
    optimize_for_inference(model, backend="reference")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64], ids=str)
def test_integer_weights_are_named(model: HiFuse, path: Path, dtype: torch.dtype) -> None:
    name = "fu2.W_l.conv.weight"
    weights = {**model.state_dict(), name: model.state_dict()[name].to(dtype)}
    torch.save(weights, path)
    with pytest.raises(CheckpointError, match=rf"{name} is {dtype}, and a weight is floating point"):
        create_model_from_checkpoint(path)
    with pytest.raises(CheckpointError, match=f"{name} is {dtype}"):
        describe_checkpoint(weights)


def test_one_shard_of_several_is_recognised(model: HiFuse) -> None:
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("layers1")}
    with pytest.raises(CheckpointError, match=r"missing: .*it may be one shard of several"):
        describe_checkpoint(weights)


def test_tied_weights_are_saved(path: Path) -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    tied.register_buffer("part", tied[0].weight.detach()[0])
    save_checkpoint(tied, path)
    loaded = load_checkpoint(path)
    assert loaded.keys() == tied.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tied.state_dict().items())


class WithState(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"epoch": 3}

    def set_extra_state(self, state: Any) -> None:
        pass


def spoil(model: HiFuse) -> HiFuse:
    with torch.no_grad():
        model.fu2.W_l.conv.weight[0, 0] = float("nan")
    return model


def replace_head(model: HiFuse) -> HiFuse:
    model.conv_head = nn.Linear(8, 7)
    return model


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda model: optimize_for_inference(model, backend="reference"), TypeError, "a frozen OptimizedHiFuse: write it by"),
        (lambda model: nn.Sequential(optimize_for_inference(model, backend="reference")), TypeError, "a frozen Sequential"),
        (lambda model: model.to("meta"), ValueError, r"saved: downsample_layers\.0\.0\.weight is on the meta device"),
        (spoil, ValueError, r"saved: fu2\.W_l\.conv\.weight has values that are not finite"),
        (replace_head, ValueError, r"of its options: .*conv_head\.weight \[7, 8\] \(expected \[3, 8\]\).*reset_classifier"),
        (lambda model: WithState(2, 2), ValueError, "saved: _extra_state is of type dict, and no tensor"),
    ],
    ids=["frozen", "frozen within", "meta", "NaN", "another head", "extra state"],
)
def test_what_could_not_be_loaded_is_not_saved(model: HiFuse, path: Path, build: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        save_checkpoint(build(model), path)
    assert os.listdir(path.parent) == []


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantised_weights_are_not_saved(path: Path) -> None:
    module = nn.Module()
    module.register_buffer("weight", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    with pytest.raises(ValueError, match=r"saved: weight is quantised \(torch.qint8\)"):
        save_checkpoint(module, path)


def test_links_and_modes_are_kept(model: HiFuse, tmp_path: Path) -> None:
    real, link = tmp_path / "run 3.safetensors", tmp_path / "best.safetensors"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    save_checkpoint(model, link)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert create_model_from_checkpoint(real).options == model.options


def test_a_record_comes_back_and_is_no_part_of_the_weights(tmp_path):
    record = {"classes": ["a", "größe"], "nested": {"x": [1.5, None, True]}}
    network = HiFuse(2, dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1,) * 4)
    save_checkpoint(network, tmp_path / "x.safetensors", record)
    assert read_record(tmp_path / "x.safetensors") == record
    assert set(load_checkpoint(tmp_path / "x.safetensors")) == set(network.state_dict())
    save_checkpoint(network, tmp_path / "y.safetensors")
    torch.save(network.state_dict(), tmp_path / "z.pth")
    assert read_record(tmp_path / "y.safetensors") == read_record(tmp_path / "z.pth") == {}
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:99])
    with pytest.raises(CheckpointError, match=r"checkpoint .*y.safetensors: it is damaged"):
        read_record(tmp_path / "y.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_record(tmp_path / "absent")
