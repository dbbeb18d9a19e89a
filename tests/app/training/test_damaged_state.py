"""A state that is damaged, or of other images, is named and never trained on."""

import json
import shutil

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hifuse_fast.app.training import loop
from tests.support.training import flags, refused


def test_a_damaged_state_and_other_images_are_said(run, tmp_path, data):
    from hifuse_fast.app.console import Stopped

    images = shutil.copytree(data, tmp_path / "data")

    def stop(self, signal):
        raise Stopped(15)

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "_end_epoch", lambda self: stop(self, 15))
        assert run("train", images, "-o", folder, *flags(save_every=1)).exit_code == 143
    (images / "train" / "dark" / "000.png").write_bytes((images / "train" / "dark" / "001.png").read_bytes())
    assert "the images of" in refused(run, "-o", folder, "--resume")
    shutil.copytree(data, images, dirs_exist_ok=True)
    state = folder / "state" / "state.safetensors"
    whole = state.read_bytes()
    for edit in (
        lambda tensors, _: tensors.pop("optimizer/conv_head.bias/exp_avg"),
        lambda _, facts: facts["progress"].update(position="1"),
        lambda _, facts: facts["progress"].update(epoch=-1),
        lambda _, facts: facts.pop("world"),
        lambda _, facts: facts.update(classes=3),
        lambda _, facts: facts["configuration"].update(epochs="1"),
    ):
        _edit(state, edit)
        assert f"state {state} is damaged, or no state of a training: " in refused(run, "-o", folder, "--resume")
        state.write_bytes(whole)
    for edit, message in (
        (lambda _, facts: facts["progress"].update(position=99), "is at step 99 of an epoch of 4"),
        (lambda tensors, _: _rename(tensors, "network/conv_head.bias"), "does not fit the network of its configuration"),
        (lambda tensors, _: _rename(tensors, "optimizer/conv_head.bias/exp_avg"), "the optimizer has no "),
        (lambda tensors, _: _shorten(tensors, "optimizer/conv_head.bias/exp_avg"), "the optimizer has no "),
        (lambda _, facts: facts["options"].update(dims=3), "the state has options of no network: "),
    ):
        _edit(state, edit)
        assert message in refused(run, "-o", folder, "--resume")
        state.write_bytes(whole)
    state.write_bytes(whole[:1000])
    assert f"state {state} is damaged, or no state of a training" in refused(run, "-o", folder, "--resume")


def _edit(state, edit):
    """Change the tensors of a state, or what else it says."""
    tensors = load_file(state)
    with safe_open(state, "pt") as opened:
        metadata = opened.metadata()
    facts = json.loads(metadata["hifuse_fast.training"])
    edit(tensors, facts)
    save_file(tensors, state, {**metadata, "hifuse_fast.training": json.dumps(facts)})


def _rename(tensors, name):
    tensors[name.replace("/conv_head", "/other")] = tensors.pop(name)


def _shorten(tensors, name):
    tensors[name] = tensors[name][:1].clone()
