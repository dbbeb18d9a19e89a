"""network.py: the network of a file, by the command line."""

import json

import pytest
import torch

import hifuse_fast
from hifuse_fast.checkpoints import create_model_from_checkpoint, load_checkpoint, save_checkpoint
from hifuse_fast.data.images import Preprocess, load_image
from hifuse_fast.edits import new_network
from tests.support.cli import RECORD, SMALL, by_hand, probabilities, save_noise


def test_one_network_is_built_on_the_way(run, picture, checkpoint, monkeypatch, tmp_path):
    built = []
    new_network.cache_clear()
    begin = hifuse_fast.HiFuse.__init__
    monkeypatch.setattr(
        hifuse_fast.HiFuse, "__init__", lambda self, *args, **options: built.append(1) or begin(self, *args, **options)
    )
    result = run("predict", picture, "--checkpoint", checkpoint, "--model", "hifuse_tiny", *SMALL)
    assert "is no hifuse_tiny: its dims are" in result.stderr
    assert run("predict", picture, "--checkpoint", checkpoint, "-o", tmp_path / "out.json", *SMALL).exit_code == 0
    assert len(built) == 3  # one a run, and one without memory, which freezing compares it with


def test_a_frozen_network_predicts(run, picture, checkpoint, tmp_path):
    frozen, out = tmp_path / "frozen.safetensors", tmp_path / "out.json"
    hifuse_fast.optimize_for_inference(create_model_from_checkpoint(checkpoint), torch.bfloat16).save(frozen)
    result = run("predict", picture, "--checkpoint", frozen, "-o", out, *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    written = json.loads(out.read_text())
    assert (written["dtype"], written["model"]["channel_gate"], written["model"]["num_classes"]) == ("bfloat16", "sigmoid", 3)
    torch.testing.assert_close(probabilities(out), by_hand(checkpoint, picture), rtol=0, atol=0.02)
    for options, message in (
        (["--dtype", "float32"], "dtype must be bfloat16, in which"),
        (["--backend", "reference"], "backend must be auto for the frozen network"),
        (["--channel-gate", "double_sigmoid"], "channel_gate must be sigmoid"),
        (["--ema"], "ema is for checkpoints"),
        (["--model", "hifuse_tiny"], "is no hifuse_tiny"),
        (["--greyscale"], "greyscale is for networks of one channel"),
    ):
        result = run("predict", picture, "--checkpoint", frozen, *options, *SMALL)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_frozen_network_keeps_what_its_training_said(run, picture, checkpoint, tmp_path):
    """Classes and preparation of images, also after it was loaded and saved again; flags win over it."""
    trained, frozen, again = (tmp_path / f"{name}.safetensors" for name in ("trained", "frozen", "again"))
    save_checkpoint(create_model_from_checkpoint(checkpoint), trained, RECORD)
    hifuse_fast.optimize_for_inference(create_model_from_checkpoint(trained)).save(frozen)
    hifuse_fast.load_optimized(frozen).save(again)
    found = []
    for path in (trained, frozen, again):
        assert run("predict", picture, "--checkpoint", path, "-o", tmp_path / "out.json").exit_code == 0
        found.append(json.loads((tmp_path / "out.json").read_text()))
    for each in found:
        assert each["classes"] == RECORD["classes"]
        assert each["images"] == found[0]["images"]
        assert (each["preprocess"]["mean"], each["preprocess"]["image_size"], each["bits"]) == ([0.2, 0.3, 0.4], 64, 12)
    assert run("predict", picture, "--checkpoint", frozen, "-o", tmp_path / "out.json", "--image-size", 96).exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text())["preprocess"]["resize"] == 110


def test_networks_of_other_channels_say_so_before_images_are_read(run, picture, tmp_path, monkeypatch):
    options = {"num_classes": 2, "dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    grey, many, out = tmp_path / "grey.safetensors", tmp_path / "many.safetensors", tmp_path / "out.json"
    save_checkpoint(model := hifuse_fast.create_model("hifuse_tiny", **options, in_chans=1).eval(), grey)
    save_checkpoint(hifuse_fast.create_model("hifuse_tiny", **options, in_chans=5), many)
    arguments = ["--mean", 0.25, 0.5, 0.75, "--std", 0.5, 0.75, 1, "-o", out, *SMALL]
    assert run("predict", picture, "--checkpoint", grey, "--greyscale", *arguments).exit_code == 0
    pixels = Preprocess(64, 70, mean=(0.25,) * 3)(load_image(picture).convert("L"))[None, :1]
    with torch.inference_mode():
        torch.testing.assert_close(probabilities(out), model(pixels).softmax(-1)[0], rtol=0, atol=1e-6)

    monkeypatch.setattr("hifuse_fast.app.predict.predict", lambda *_, **__: pytest.fail("an image was read"))
    result = run("predict", picture, "--checkpoint", grey, *SMALL)
    assert result.exit_code == 2
    assert "takes images of in_chans = 1, and they have 3; --greyscale converts them" in result.stderr
    for added in ([], ["--greyscale"]):
        result = run("predict", picture, "--checkpoint", many, *added, *SMALL)
        assert (result.exit_code, "5" in result.stderr) == (2, True)


def test_weights_and_their_moving_average(run, picture, checkpoint, tmp_path):
    weights = load_checkpoint(checkpoint)
    average = {name: tensor * 0.5 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    both, out = tmp_path / "both.pth", tmp_path / "out.json"
    torch.save({"state_dict": weights, "state_dict_ema": average}, both)
    result = run("predict", picture, "--checkpoint", both, "-o", out, *SMALL)
    assert result.exit_code == 0
    assert "the weights were taken; ema=True, or --ema, takes the average" in result.stderr
    torch.testing.assert_close(probabilities(out), by_hand(checkpoint, picture), rtol=0, atol=1e-6)
    result = run("predict", picture, "--checkpoint", both, "--ema", "-o", out, *SMALL)
    assert (result.exit_code, result.stderr) == (0, "")
    assert not torch.allclose(probabilities(out), by_hand(checkpoint, picture), atol=1e-3)


def test_the_gate_is_the_files(run, picture, tmp_path):
    options = {"num_classes": 2, "dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
    path, out = tmp_path / "old.safetensors", tmp_path / "out.json"
    save_checkpoint(hifuse_fast.create_model("hifuse_tiny", **options, channel_gate="double_sigmoid", drop_rate=0.25), path)
    assert run("predict", picture, "--checkpoint", path, "-o", out, *SMALL).exit_code == 0
    model = json.loads(out.read_text())["model"]
    assert (model["channel_gate"], model["drop_rate"]) == ("double_sigmoid", 0.25)
    result = run("predict", picture, "--checkpoint", path, "--channel-gate", "sigmoid", *SMALL)
    assert result.exit_code == 2
    assert "channel_gate must be 'double_sigmoid' or None" in result.stderr


def test_a_network_that_cannot_be_frozen_predicts_as_it_is(run, picture, checkpoint, monkeypatch, tmp_path):
    def refuse(*_):
        raise hifuse_fast.BackendError("it was taken away")

    monkeypatch.setattr("hifuse_fast.inference.serve.optimize_for_inference", refuse)
    out = tmp_path / "out.json"
    result = run("predict", picture, "--checkpoint", checkpoint, "-o", out, *SMALL)
    assert result.exit_code == 0
    assert result.stderr == "the network is not frozen for inference, which would be faster: it was taken away\n"
    written = torch.tensor(json.loads(out.read_text())["images"][0]["probabilities"])
    torch.testing.assert_close(written, by_hand(checkpoint, picture), rtol=0, atol=1e-6)


def test_int8_is_calibrated_on_a_folder(run, picture, checkpoint, tmp_path, monkeypatch):
    """Of a random network every image is of one class, so its head is turned to tell bright images from dark ones."""
    monkeypatch.setattr("hifuse_fast.inference.calibrate._ALONE", 4)
    folder, trained, out = tmp_path / "images", tmp_path / "trained.safetensors", tmp_path / "out.json"
    for i in range(32):
        save_noise(folder / f"{i}.png", 40, 40, i)
    model = create_model_from_checkpoint(checkpoint)
    reading = Preprocess(32, 36)
    images = torch.stack([reading(load_image(path)) for path in sorted(folder.iterdir())])
    with torch.inference_mode():
        logits = model(images)
    model.conv_head.bias.data -= logits.median(0).values
    save_checkpoint(model, trained)
    small = ["--image-size", "32", "--resize", "36", "--dtype", "int8"]
    result = run("predict", picture, "--checkpoint", trained, "--calibration", folder, "-o", out, *small)
    written = json.loads(out.read_text()) if result.exit_code == 0 else {}
    if result.exit_code:  # the gate may close on a random network; then it says why
        assert "model cannot run in int8" in result.stderr
    else:
        assert "of 32 calibration images" in result.stderr
        assert written["dtype"] == "int8"

    (folder / "0.png").write_bytes(b"no image")
    for options, message in (
        (["--dtype", "int8"], "calibration must be given with dtype int8"),
        (["--calibration", folder], "calibration must be given with dtype int8 and with no other, got dtype float32"),
        (["--dtype", "int8", "--calibration", tmp_path / "nowhere"], "nowhere"),
        (["--dtype", "int8", "--calibration", folder], "calibration image"),
    ):
        result = run("predict", picture, "--checkpoint", trained, *options, *SMALL)
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    (folder / "0.png").unlink()
    (folder / "31.png").unlink()
    result = run("predict", picture, "--checkpoint", trained, "--calibration", folder, *small)
    assert (result.exit_code, result.stderr) == (2, f"Error: calibration must have 32 images or more, got 30 in {folder}\n")
