"""Tied weights and tied blocks: saved, loaded, frozen and trained as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

import hifuse_fast
from hifuse_fast import HiFuse
from tests.support.modules import narrow, some_images


def tied_blocks(model: HiFuse) -> None:
    model.stages[0][1] = model.stages[0][0]
    model.layers1.blocks[1].attn.qkv = model.layers1.blocks[0].attn.qkv


def tied_weights(model: HiFuse) -> None:
    model.stages[0][1].pwconv.weight = model.stages[0][0].pwconv.weight
    model.fu2.W_l.conv.weight = model.fu2.W_g.conv.weight
    model.layers1.blocks[1].fc1.weight = model.layers1.blocks[1].attn.proj.weight


@pytest.mark.parametrize("tie", [tied_blocks, tied_weights])
def test_a_tied_network_is_saved_loaded_and_frozen(tie: Callable[[HiFuse], None], tmp_path: Path) -> None:
    images, model = some_images(1, 32, 32), narrow()
    before = model(images)
    tie(model)
    expected = model(images)
    assert not torch.allclose(expected, before, rtol=1e-4)
    hifuse_fast.save_checkpoint(model, tmp_path / "ours.safetensors")
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))
    torch.save(model.state_dict(), tmp_path / "torch.pt")
    for name in ("ours.safetensors", "torch.pt"):
        again = hifuse_fast.create_model_from_checkpoint(tmp_path / name, dtype=torch.float64).eval()
        torch.testing.assert_close(again(images), expected, rtol=1e-9, atol=1e-9)
    again = narrow(1)
    tie(again)
    safetensors.torch.load_model(again, str(tmp_path / "theirs.safetensors"))
    torch.testing.assert_close(again(images), expected, rtol=1e-9, atol=1e-9)
    frozen = hifuse_fast.optimize_for_inference(model, torch.float64, backend="reference")
    torch.testing.assert_close(frozen(images), expected, rtol=1e-9, atol=1e-9)


def test_a_file_that_says_a_tied_weight_once_names_what_is_missing(tmp_path: Path) -> None:
    model = narrow()
    tied_blocks(model)
    safetensors.torch.save_model(model, str(tmp_path / "theirs.safetensors"))
    with pytest.raises(hifuse_fast.CheckpointError, match=r"stages.0.[01].|missing"):
        hifuse_fast.create_model_from_checkpoint(tmp_path / "theirs.safetensors")
