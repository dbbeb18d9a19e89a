"""Files that people have: judged by their first bytes, read without running code, the weights found where they lie."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hifuse_fast import CheckpointError, load_checkpoint
from hifuse_fast.checkpoints.kinds import is_frozen

WEIGHTS = {"stem.weight": torch.arange(6.0).view(2, 3), "stem.bias": torch.ones(2)}
AVERAGE = {name: tensor + 1 for name, tensor in WEIGHTS.items()}


def loaded(path: Path, content: Any, **options: Any) -> dict[str, Tensor]:
    torch.save(content, path)
    return load_checkpoint(path, **options)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- Which file it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors", "a"])
def test_a_name_says_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    safetensors.torch.save_file(WEIGHTS, path)
    assert same(load_checkpoint(path), WEIGHTS)
    assert same(loaded(path, WEIGHTS), WEIGHTS)
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(path), WEIGHTS)


class Net(nn.Linear):
    """Of a module that is not installed where the file is read."""


def text_file(text: str) -> Any:
    return lambda path: path.write_text(text)


def zip_file(*names: str) -> Any:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, b"")

    return write


FILES: list[tuple[str, Any, str]] = [
    ("a.pth", text_file("version https://git-lfs.github.com/spec/v1\noid sha256:12\n"), "a pointer of Git LFS.*git lfs pull"),
    ("a.pth", text_file("\n<!DOCTYPE html><html><body>Sign in</body></html>"), r"a web page \(HTML\)"),
    ("a.pth", lambda path: path.write_bytes(gzip.compress(b"weights")), "compressed with gzip: unpack it"),
    ("a.json", text_file(json.dumps({"weight_map": {"a": "1.bin", "b": "2.bin", "c": "2.bin"}})), "the index of 2 shards"),
    ("a.json", text_file("{" + '"a":{' * 10**5), "a JSON file, and holds no weights"),
    ("a", lambda path: path.mkdir(), "a folder"),
    ("model-00001-of-00003.safetensors", lambda path: safetensors.torch.save_file(WEIGHTS, path), "one shard of 3: load all"),
    ("a.pth", lambda path: path.write_bytes(b""), "empty"),
    ("a.safetensors", lambda path: path.write_bytes(b"\x00\x01noise" * 9), "damaged, or neither"),
    ("a.pkl", lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle that torch.save did not write"),
    ("a.npz", lambda path: np.savez(path, a=np.zeros(2)), "an archive of NumPy arrays"),
    ("a.npy", lambda path: np.save(path, np.zeros(2)), "a NumPy array"),
    ("a.pt", zip_file("net/data.pkl", "net/constants.pkl"), "a TorchScript archive"),
    ("a.zip", zip_file("readme.txt"), "a zip archive that torch.save did not write"),
    ("a.pth", lambda path: torch.save(Net(2, 2), path), r"an object of type tests\.network\.\w+\.Net, .* alone"),
    ("a.safetensors", lambda path: safetensors.torch.save_file(WEIGHTS, path, {"format": "hifuse_fast.optimized"}),
     "a network frozen for inference: load it with load_optimized"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "message"), FILES, ids=[message[:30] for _, _, message in FILES])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_is_said_what_a_file_is(tmp_path: Path, name: str, write: Any, message: str) -> None:
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name} cannot be read: it (is|holds) {message}"):
        load_checkpoint(tmp_path / name)


def test_a_folder_names_the_files_in_it(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "epoch_3.pth")
    with pytest.raises(CheckpointError, match=r"it is a folder: name a file in it, such as epoch_3\.pth"):
        load_checkpoint(tmp_path)


# ---- What lies beside the weights ----------------------------------------------------------------------------------------


def test_namespaces_and_numpy_beside_the_weights(tmp_path: Path) -> None:
    beside = {
        "args": argparse.Namespace(lr=np.float32(1e-4), folder=tmp_path, more=argparse.Namespace()),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "epoch": 3,
    }
    assert same(loaded(tmp_path / "a.pth", {**beside, "state_dict": WEIGHTS}), WEIGHTS)


class Danger(argparse.Namespace):
    def __reduce__(self) -> Any:
        return np.fromfile, ("/etc/hostname",)


def test_other_functions_of_numpy_are_not_called(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"an object of type numpy\.\S*fromfile"):
        loaded(tmp_path / "a.pth", {"state_dict": WEIGHTS, "args": Danger()})


# ---- Where the weights are -----------------------------------------------------------------------------------------------


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}
PLACES: list[Any] = [
    {"model": {"dims": 3, "name": "tiny"}, "state_dict": WEIGHTS},
    {"model": {"config": 1, "weights": WEIGHTS}, "optimizer": OPTIMIZER},
    {"checkpoint": {"inner": {"module": WEIGHTS}}, "optim_state": {"a": {"b": torch.zeros(2), "c": torch.zeros(1)}}},
    {"model": WEIGHTS, "teacher": {**WEIGHTS, "more": torch.zeros(1)}},
    {"network": WEIGHTS, "criterion": {"weight": torch.ones(2)}, "loss": torch.tensor(1.0)},
]


@pytest.mark.parametrize("content", PLACES)
def test_the_mapping_whose_values_are_tensors(tmp_path: Path, content: Any) -> None:
    assert same(loaded(tmp_path / "a.pth", content), WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.zeros(2)}, "must hold tensors by name, got a NumPy or argparse object for 'a'"),
        ({0: torch.zeros(2)}, "must hold tensors by name, got Tensor for 0"),
        ({"total_ops": torch.zeros(1)}, "must hold tensors by name, got Tensor for 'total_ops'"),
        ({"optimizer": {"a": torch.zeros(1)}}, "must hold tensors by name, got dict for 'optimizer'"),
    ],
)
def test_content_without_weights(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path / "a.pth", content)


def test_weights_under_two_names_and_in_a_circle(tmp_path: Path) -> None:
    content: dict[str, Any] = {"left": WEIGHTS, "right": WEIGHTS}
    content |= {f"again{i}": content for i in range(12)}
    assert same(loaded(tmp_path / "a.pth", content), WEIGHTS)


def test_two_sets_of_weights_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 sets of weights, at 'left' and 'right'"):
        loaded(tmp_path / "a.pth", {"left": WEIGHTS, "right": AVERAGE})


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "backbone.", "model.module.", "module.", "_orig_mod.", "network._orig_mod."]
)
def test_prefixes_that_all_names_carry(tmp_path: Path, prefix: str) -> None:
    content = {prefix + name: tensor for name, tensor in WEIGHTS.items()}
    assert same(loaded(tmp_path / "a.pth", {"state_dict": content}), WEIGHTS)
    partly = {**content, "head.weight": torch.ones(1)}
    assert same(loaded(tmp_path / "a.pth", partly), partly)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": WEIGHTS, "state_dict_ema": AVERAGE},
        {"model": WEIGHTS, "ema": {"module": AVERAGE}},
        {"model": WEIGHTS, "model_ema": {f"module.{name}": tensor for name, tensor in AVERAGE.items()}},
        {**{f"net.{name}": x for name, x in WEIGHTS.items()}, **{f"ema_model.{name}": x for name, x in AVERAGE.items()}},
    ],
)
def test_weights_and_their_moving_average(tmp_path: Path, content: Any) -> None:
    with pytest.warns(UserWarning, match="the weights were taken; ema=True, or --ema, takes the average"):
        assert same(loaded(tmp_path / "a.pth", content), WEIGHTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(load_checkpoint(tmp_path / "a.pth", ema=True), AVERAGE)


def test_there_may_be_no_average_or_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no moving average \(EMA\)"):
        loaded(tmp_path / "a.pth", {"model": WEIGHTS}, ema=True)
    assert same(loaded(tmp_path / "a.pth", {"ema": AVERAGE}), AVERAGE)


def test_counters_are_no_weights(tmp_path: Path) -> None:
    counted = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    counters = {"n_averaged": torch.tensor(3), "total_ops": torch.zeros(1), "module.stem.total_params": torch.zeros(1)}
    assert same(loaded(tmp_path / "a.pth", counted | counters), WEIGHTS)


# ---- What values they are ------------------------------------------------------------------------------------------------


def test_float8_becomes_float32(tmp_path: Path) -> None:
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        found = loaded(tmp_path / "a.pth", {name: tensor.to(dtype) for name, tensor in WEIGHTS.items()})
        assert same(found, WEIGHTS)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex64), r"is complex \(torch.complex64\)"),
        (torch.eye(3).to_sparse(), r"is not dense \(torch.sparse_coo\)"),
        (torch.ones(2, device="meta"), "is on the meta device"),
        (torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn), "has values that are not finite"),
    ],
    ids=["complex", "sparse", "meta", "NaN in float8"],
)
def test_values_that_are_no_weights(tmp_path: Path, tensor: Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"a\.pth: stem\.weight {message}"):
        loaded(tmp_path / "a.pth", {**WEIGHTS, "stem.weight": tensor})


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_quantised_weights(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"stem\.weight is quantised \(torch.qint8\): dequantise it first"):
        loaded(tmp_path / "a.pth", {**WEIGHTS, "stem.weight": quantised})


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="it is a device or a pipe"):
        load_checkpoint(tmp_path / "pipe")
    assert not is_frozen(tmp_path / "pipe")
