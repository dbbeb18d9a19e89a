"""Checkpoints: round trips, what is deduced, what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import hifuse_fast
from hifuse_fast import (
    CheckpointError,
    create_model_from_checkpoint,
    describe_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

SMALL_OPTIONS: dict[str, Any] = {
    "num_classes": 5,
    "in_chans": 1,
    "dims": (8, 12, 20, 32),
    "depths": (1, 2, 3, 1),
    "conv_depths": (2, 1, 1, 1),
    "num_heads": (2, 3, 5, 4),
    "window_size": 4,
    "qkv_bias": False,
    "mixer": "depthwise",
}


@pytest.fixture(scope="module")
def model() -> hifuse_fast.HiFuse:
    torch.manual_seed(0)
    return hifuse_fast.create_model("hifuse_tiny", **SMALL_OPTIONS).eval()


def logits(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad(), hifuse_fast.use_backend("reference"):
        return model(torch.randn(1, 1, 32, 64))


OFFICIAL = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]}, "epoch": 3, "lr_schedule": {"last_epoch": 3}}


@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: {"model": s, "epoch": 3}, lambda s: {"state_dict": s}, lambda s: {"net": s, **OFFICIAL}],
    ids=["plain", "model", "state_dict", "the official training script's"],
)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
def test_a_torch_file_round_trip(tmp_path: Path, model: hifuse_fast.HiFuse, wrap: Any, prefix: str) -> None:
    path = tmp_path / "weights.pth"
    torch.save(wrap({prefix + name: tensor for name, tensor in model.state_dict().items()}), path)
    loaded = create_model_from_checkpoint(path)
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(model))


def test_a_safetensors_round_trip(tmp_path: Path, model: hifuse_fast.HiFuse) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(torch.nn.DataParallel(model), path)
    assert os.listdir(tmp_path) == ["weights.safetensors"]
    assert load_checkpoint(path).keys() == model.state_dict().keys()
    loaded = create_model_from_checkpoint(path, dtype=torch.float64)
    torch.testing.assert_close(loaded(torch.zeros(1, 1, 32, 32).double()).float(), model(torch.zeros(1, 1, 32, 32)))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, model: hifuse_fast.HiFuse, monkeypatch: Any) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")

    def fail(tensors: Any, filename: Any, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(model, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_everything_is_deduced_from_the_shapes(model: hifuse_fast.HiFuse) -> None:
    assert describe_checkpoint(model.state_dict()) == {"name": "hifuse_tiny", **SMALL_OPTIONS}


@pytest.mark.parametrize("name", hifuse_fast.list_models())
@pytest.mark.parametrize("num_classes", [0, 7])
def test_the_three_sizes_are_recognised(name: str, num_classes: int) -> None:
    described = describe_checkpoint(hifuse_fast.create_model(name, num_classes, device="meta").state_dict())
    assert described["name"] == name
    assert described["num_classes"] == num_classes


def test_other_classes_features_and_the_older_gate(tmp_path: Path, model: hifuse_fast.HiFuse) -> None:
    path = tmp_path / "weights.safetensors"
    save_checkpoint(model, path)
    assert logits(create_model_from_checkpoint(path, num_classes=2)).shape == (1, 2)
    assert logits(create_model_from_checkpoint(path, num_classes=0)).shape == (1, 32)
    features = create_model_from_checkpoint(path, features_only=True, out_indices=(3,))
    assert [x.shape for x in logits(features)] == [(1, 32, 1, 2)]
    torch.save(model.state_dict(), tmp_path / "official.pth")
    assert not torch.equal(logits(create_model_from_checkpoint(tmp_path / "official.pth", "double_sigmoid")), logits(model))
    with pytest.raises(TypeError, match=r"^depths cannot be overridden"):
        create_model_from_checkpoint(path, depths=(1, 1, 1, 1))
    with pytest.raises(TypeError, match="unknown option wing_span"):
        create_model_from_checkpoint(path, wing_span=1)


def drop(prefix: str) -> Any:
    return lambda s: {name: tensor for name, tensor in s.items() if not name.startswith(prefix)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: nn.Linear(2, 2).state_dict(), r"missing: downsample_layers\.0\.0\.weight.*2 unexpected: weight, bias"),
        (drop("fu2."), r"54 missing: fu2\.se\.0\.weight"),
        (drop("patch_embed."), r"missing: .*unexpected: "),
        (lambda s: {**s, "extra": torch.zeros(1)}, "1 unexpected: extra"),
        (
            lambda s: {**s, "head.weight": torch.zeros(9, 32)},
            r"1 of another shape: head\.weight \[9, 32\] \(expected \[5, 32\]\)",
        ),
        (lambda s: {**s, "patch_embed.proj.weight": torch.zeros(3)}, "of another shape"),
        (lambda s: {**s, "layers4.blocks.0.attn.relative_position_bias_table": torch.zeros(49, 3)}, r"num_heads\[3\]"),
        (lambda s: {}, "missing"),
    ],
)
def test_another_architecture_is_refused_with_a_few_names(model: hifuse_fast.HiFuse, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        describe_checkpoint(change(model.state_dict()))
    assert len(str(caught.value)) < 1500


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["HIFUSE_TEST_DIRECTORY"],)


def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIFUSE_TEST_DIRECTORY", str(tmp_path / "made"))
    torch.save({"state_dict": Code()}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="could run code"):
        load_checkpoint(tmp_path / "weights.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, model: hifuse_fast.HiFuse, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(model.state_dict(), path)
    else:
        save_checkpoint(model, path)
    content = path.read_bytes()
    for length in (0, 1, 8, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cannot be read: it is"):
            load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        create_model_from_checkpoint(tmp_path / "nowhere.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "got list"),
        ({}, "without weights"),
        ({"a": 1}, "got int for 'a'"),
        ({"good": torch.zeros(2), "bad": torch.tensor([0.0, float("nan")]), "worse": torch.tensor(float("inf"))}, ": bad has"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "weights.pth")


def test_where_and_what_to_save_is_checked(tmp_path: Path, model: hifuse_fast.HiFuse) -> None:
    with pytest.raises(ValueError, match=r"path must end in \.safetensors"):
        save_checkpoint(model, tmp_path / "weights.pth")
    with pytest.raises(TypeError, match="model must be"):
        save_checkpoint({}, tmp_path / "weights.safetensors")  # type: ignore[arg-type]
