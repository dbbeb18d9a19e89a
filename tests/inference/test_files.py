"""The file of a frozen network: the round trip, devices, and what is said of one that does not fit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hifuse_fast import (
    BackendError,
    CheckpointError,
    OptimizedHiFuse,
    create_model_from_checkpoint,
    load_optimized,
    optimize_for_inference,
    save_checkpoint,
)
from hifuse_fast.checkpoints.read import RECORD, read_record
from tests.support.frozen import VARIANTS, image, make


@pytest.fixture(scope="module")
def model() -> Any:
    return make(torch.float32)


@pytest.fixture(scope="module")
def network(model: Any) -> OptimizedHiFuse:
    return optimize_for_inference(model)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_round_trip(dtype: torch.dtype, backend: str, tmp_path: Path) -> None:
    for options in (VARIANTS["plain"], VARIANTS["no qkv bias"], {"features_only": True, "out_indices": (2, 1)}):
        frozen = optimize_for_inference(make(torch.float32, **options), dtype, backend=backend)
        path = tmp_path / "network.safetensors"
        frozen.save(path)
        loaded = load_optimized(path)
        assert loaded.configuration == frozen.configuration
        x = image(2, 40, 64, torch.float32)
        for a, b in zip(loaded(x), frozen(x), strict=True):
            assert torch.equal(a, b)
    assert [file.name for file in tmp_path.iterdir()] == ["network.safetensors"]


def test_a_file_goes_to_devices_that_serve_it(
    network: OptimizedHiFuse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "network.safetensors"
    network.save(path)
    for device in ("meta", "nonsense", 1.5, None):
        with pytest.raises(ValueError, match="device must be 'cpu' or a CUDA device, got"):
            load_optimized(path, device)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"device must be one of this machine, which has . CUDA devices, got 'cuda:9'"):
        load_optimized(path, "cuda:9")
    backend = network.stem.backend
    if backend == "native":
        monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
        refused = r"'native' cannot serve prepare_stem: .* for cuda tensors.* on this machine, for cuda"
        with pytest.raises(BackendError, match=refused):
            load_optimized(path, "cuda")


@pytest.fixture
def saved(network: OptimizedHiFuse, tmp_path: Path) -> tuple[Path, dict[str, str], dict[str, Tensor]]:
    """A file, its metadata, its tensors."""
    path = tmp_path / "network.safetensors"
    network.save(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    return path, metadata, safetensors.torch.load_file(path)


def test_a_loaded_network_does_not_depend_on_its_file(network: OptimizedHiFuse, saved: Any) -> None:
    path, _, _ = saved
    loaded = load_optimized(path)
    path.write_bytes(b"")
    x = image(dtype=torch.float32)
    assert torch.equal(loaded(x), network(x))
    again = path.with_name("again.safetensors")
    loaded.save(again)
    assert torch.equal(load_optimized(again)(x), network(x))


def test_damaged_and_foreign_files_are_named(model: Any, saved: Any) -> None:
    path, _, _ = saved
    content = path.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"nowhere.safetensors: no such file"):
        load_optimized(path.with_name("nowhere.safetensors"))
    for damaged in (b"", b"nonsense", content[: len(content) // 2], content[:100]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"network.safetensors cannot be read: it is (damaged|empty)"):
            load_optimized(path)
    save_checkpoint(model, path)
    with pytest.raises(CheckpointError, match=r"not written by OptimizedHiFuse.save; .*create_model_from_checkpoint"):
        load_optimized(path)
    with pytest.raises(ValueError, match=r"path must end in .safetensors"):
        optimize_for_inference(model).save(path.with_suffix(".pt"))


def change_configuration(metadata: dict[str, str], **changes: Any) -> dict[str, str]:
    return {**metadata, "configuration": json.dumps({**json.loads(metadata["configuration"]), **changes})}


def test_files_that_do_not_fit_are_named(saved: Any) -> None:
    path, metadata, tensors = saved
    entries = json.loads(metadata["ops"])
    fewer = {name: tensor for name, tensor in tensors.items() if name != "stem.bias"}
    more = {**tensors, "more": torch.zeros(1)}
    without_head = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    others = {name: entry for name, entry in entries.items() if name != "head"}
    foreign = {"backend": "triton", "options": {"algorithm": "winograd4", "input_scale": None}}
    triton = {name: entry | foreign if name.endswith(".mixer") else entry for name, entry in entries.items()}
    rows: list[tuple[dict[str, str], dict[str, Tensor], type[Exception], str]] = [
        (metadata, fewer, CheckpointError, "1 tensors are missing: stem.bias"),
        (metadata, more, CheckpointError, "1 tensors are unexpected: more"),
        ({**metadata, "ops": json.dumps(others)}, without_head, CheckpointError, "the op head is missing"),
        ({**metadata, "version": "0"}, tensors, CheckpointError, "version must be 10, got 0: optimise the model again"),
        ({**metadata, "configuration": "{"}, tensors, CheckpointError, "its configuration does not fit"),
        (change_configuration(metadata, more=1), tensors, CheckpointError, "its configuration does not fit"),
        (change_configuration(metadata, dtype="int8"), tensors, CheckpointError, "its configuration does not fit"),
        (change_configuration(metadata, depths=(1, 1, 1, 1)), tensors, CheckpointError, "ops that its configuration has not"),
        (
            {**metadata, "ops": json.dumps(triton)},
            tensors,
            BackendError,
            "'triton' cannot serve .*: .*; optimise the model again",
        ),
    ]
    for changed, content, error, message in rows:
        safetensors.torch.save_file(content, path, changed)
        with pytest.raises(error, match=f"optimised network .*network.safetensors: .*{message}"):
            load_optimized(path)


def test_what_a_checkpoint_says_of_its_network_is_kept(model: Any, tmp_path: Path) -> None:
    record = {"classes": ["a", "größe"], "nested": {"x": [1.5, None, True]}}
    save_checkpoint(model, tmp_path / "x.safetensors", record)
    trained = create_model_from_checkpoint(tmp_path / "x.safetensors")
    frozen = optimize_for_inference(torch.nn.Sequential(trained), backend="reference")
    trained.record["classes"].append("later")
    assert trained.record != frozen.record == record
    for name in ("y.safetensors", "z.safetensors"):  # also of one that is loaded and saved again
        frozen.save(tmp_path / name)
        assert read_record(tmp_path / name) == record
        frozen = load_optimized(tmp_path / name)
        assert frozen.record == record
    trained.reset_classifier(2)
    assert trained.record == {}
    optimize_for_inference(model, backend="reference").save(tmp_path / "none.safetensors")
    assert read_record(tmp_path / "none.safetensors") == {}


def test_a_record_that_no_file_holds_is_refused(model: Any, saved: Any) -> None:
    path, metadata, tensors = saved
    network = copy.deepcopy(model)
    for record in ({"x": object()}, {"x": float("nan")}, [1]):
        network.record = record
        with pytest.raises(ValueError, match=r"model.record must be a dict as JSON has it"):
            optimize_for_inference(network, backend="reference")
    for text in ("[1]", "{"):
        safetensors.torch.save_file(tensors, path, {**metadata, RECORD: text})
        for read in (load_optimized, read_record):
            with pytest.raises(CheckpointError, match=rf"{path}: the record in its metadata is damaged"):
                read(path)
