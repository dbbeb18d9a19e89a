"""The list of calls in the file of a frozen network, by which C runs it (tests/c runs it)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hifuse_fast import optimize_for_inference
from hifuse_fast.backends.native import library
from hifuse_fast.backends.tape import Tape, call, recorded
from hifuse_fast.inference.calls import list_calls
from tests.support.frozen import image, make

needs_native = pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))
QUICK: dict[str, Any] = {"depths": (1, 1, 1, 1), "conv_depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 4)}


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata()
    return metadata


def saved(path: Path, dtype: torch.dtype = torch.float32, backend: str = "native", **options: Any) -> dict[str, str]:
    optimize_for_inference(make(torch.float32, **{**QUICK, **options}), dtype, backend=backend).save(path)
    return metadata_of(path)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_names_ops_tensors_maps_and_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    metadata = saved(path, dtype)
    assert metadata["version"] == "10"
    calls = json.loads(metadata["calls"])
    first, *_, mean, head = calls
    weights = {name: f"stem.{name}" for name in ("weight", "bias", "scale", "shift")}
    maps = {"local_map": [0, 4, 8], "global_map": [1, 4, 8]}
    assert first == {"op": "stem", "images": "images", **weights, **maps, "local_eps": 1e-6, "global_eps": 1e-5}
    assert mean["op"] == "mean"
    assert mean["x"][1:] == [32, 32]
    assert mean["out"][1:] == [0, 32]
    assert head["op"] == "linear"
    assert head["maps"] == [mean["out"]]
    assert head["out"][1:] == [0, 5]
    texts = [text for each in calls for key, text in each.items() if isinstance(text, str) and key != "op"]
    assert sorted(set(texts) - {"images"}) == sorted(safetensors.torch.load_file(path))


@needs_native
def test_maps_share_memory_as_the_pool_lets_them(tmp_path: Path) -> None:
    """The slots are those of a call that was made, and what is written is never what is read."""
    network = optimize_for_inference(make(torch.float32, **QUICK), backend="native")
    network.save(tmp_path / "x.safetensors")
    calls = json.loads(metadata_of(tmp_path / "x.safetensors")["calls"])
    network(image(dtype=torch.float32))
    ((maps,),) = network._pool._idle.values()
    pooled = sum(map(len, maps._free.values()))
    slots = {each["out"][0] for each in calls if "out" in each} | {0, 1}
    assert len(slots) == pooled + 2  # the mean and the logits are not the pool's
    for each in calls:
        maps_read = [each[key] for key in ("x", "u", "z", "qkv", "residual") if isinstance(each.get(key), list)]
        assert "out" not in each or each["out"][0] not in [slot for slot, _, _ in (*maps_read, *each.get("maps", ()))]


@needs_native
@pytest.mark.parametrize("options", [{"features_only": True}, {"backend": "reference"}], ids=str)
def test_there_is_none_where_other_calls_are_made(options: dict[str, Any], tmp_path: Path) -> None:
    assert "calls" not in saved(tmp_path / "x.safetensors", **options)


def test_a_tape_may_keep_calls_without_making_them() -> None:
    y = torch.zeros(1)
    with recorded(made=False) as tape:
        assert call(y.add_, 1) is None
    assert y.item() == 0
    tape.replay()
    assert y.item() == 1


@needs_native
@pytest.mark.parametrize("fault", ["another number of calls", "another size"])
def test_calls_that_depend_on_the_images_are_no_list(fault: str) -> None:
    def calls(images: Tensor) -> Tape:
        batch, _, height, width = images.shape
        x = torch.empty((batch, height // 4, width // 4, 3), device="meta")
        out = torch.empty((batch, 1, height // 32 if fault == "another size" else 1, 3), device="meta")
        with recorded(made=False) as tape:
            for _ in range(2 if fault == "another number of calls" and height > 100 else 1):
                call(torch.ops.hifuse_fast.mean_out.default, x, out)
        return tape

    with pytest.raises(RuntimeError, match=r"depend on batch or size|has the shape \[1, 1, 2, 3\] for images \[1, 1, 64, 96\]"):
        list_calls(calls, {})
