"""hifuse-fast train: from a folder to checkpoints that predict takes; every option; bad input is one line and loses nothing."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from hifuse_fast import HiFuse, create_model_from_checkpoint, save_checkpoint
from hifuse_fast.app.remembered import Remembered
from hifuse_fast.app.training import loop
from hifuse_fast.app.training.configuration import Configuration
from hifuse_fast.app.training.network import make_network
from hifuse_fast.checkpoints import read_record
from hifuse_fast.data.dataset import ImageSet
from hifuse_fast.data.examples import read_examples
from tests.support.cli import read_csv
from tests.support.training import NETWORK, flags, refused


@pytest.fixture(scope="module")
def finished(tmp_path_factory, data):
    """The folder of a run of two epochs, and what it said."""
    from click.testing import CliRunner

    from hifuse_fast.cli import main

    folder = tmp_path_factory.mktemp("finished") / "run"
    done = CliRunner().invoke(main, ["train", str(data), "-o", str(folder), *flags(epochs=2, lr=1e-3)])
    assert done.exit_code == 0, done.output
    return folder, done.stderr


def test_what_a_run_leaves_behind(finished, data):
    folder, said = finished
    names = ["best.safetensors", "config.toml", "curves.png", "last.safetensors", "log.csv", "splits.csv", "state"]
    assert sorted(path.name for path in folder.iterdir()) == names
    rows = read_csv(folder / "log.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert rows[0]["best"] == "1"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "2 classes; images: 14 train, 6 val." in said
    assert "epoch 2/2: loss " in said
    assert "of the time was spent waiting for images" in said
    examples = read_examples(folder / "splits.csv")
    assert [(e.path, e.label, e.split) for e in examples] == [(e.path, e.label, e.split) for e in read_examples(data)]


def test_a_checkpoint_says_everything_and_predict_needs_no_flags(run, finished, data, tmp_path):
    folder, _ = finished
    record = read_record(folder / "best.safetensors")
    assert record["classes"] == ["dark", "light"]
    assert record["images"]["preprocess"]["image_size"] == 32
    assert record["images"]["preprocess"]["resize"] == 37
    assert record["configuration"]["lr"] == 1e-3
    assert set(record["versions"]) == {"hifuse_fast", "torch", "python", "machine"}
    assert len(record["data"]) == 64
    assert record["metrics"]["epoch"] == record["epoch"]
    model = create_model_from_checkpoint(folder / "last.safetensors")
    assert model.options.dims == (8, 16, 24, 32)
    out = tmp_path / "out.csv"
    assert run("predict", data / "val", "--checkpoint", folder / "best.safetensors", "-o", out).exit_code == 0
    rows = read_csv(out)
    assert set(rows[0]) >= {"p(dark)", "p(light)"}
    right = sum(row["class"] in row["path"] for row in rows)
    logged = max(float(row["val_accuracy"]) for row in read_csv(folder / "log.csv"))
    assert right / len(rows) == logged
    out = tmp_path / "out.json"
    arguments = ("--checkpoint", folder / "best.safetensors", "-o", out)
    assert run("predict", data / "val", *arguments, "--image-size", 64, "--bits", 12).exit_code == 0
    header = json.loads(out.read_text())
    assert (header["preprocess"]["image_size"], header["preprocess"]["resize"], header["bits"]) == (64, 73, 12)


def test_dicom_is_trained_on_and_evaluated_in_the_window_of_the_run(run, tmp_path):
    pytest.importorskip("pydicom")
    from tests.support.dicom import save_dicom

    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2), ("test", 2)):
        for label, level in (("air", -900), ("bone", 900)):
            for index in range(count):
                units = draw.integers(level - 300, level + 300, (40, 40)).astype(np.int16)
                save_dicom(tmp_path / "data" / split / label / f"{index}.dcm", units)
    folder = tmp_path / "run"
    assert "its signed samples have no known black and white" in refused(run, tmp_path / "data", "-o", folder, *flags())
    done = run("train", tmp_path / "data", "-o", folder, *flags(), "--window", 0, 2000)
    assert done.exit_code == 0, done.output
    assert read_record(folder / "last.safetensors")["images"]["window"] == [0, 2000]
    assert Remembered.of(folder / "last.safetensors").window == (0, 2000)
    done = run("evaluate", folder / "last.safetensors", tmp_path / "data", "-o", tmp_path / "report", "--mistakes", 0,
               "--bootstrap", 0)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["window"] == [0, 2000]


def test_a_finished_run_says_so(run, finished):
    folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "curves.png"}
    done = run("train", "-o", folder, "--resume")
    assert done.exit_code == 0
    assert f"{folder} is finished: 2 epochs; the best validation score is" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_learns(run, tmp_path, data):
    done = run("train", data, "-o", tmp_path / "run", *flags(epochs=4, lr=3e-3, warmup_epochs=0))
    assert done.exit_code == 0, done.output
    rows = read_csv(tmp_path / "run" / "log.csv")
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert max(float(row["val_auroc"]) for row in rows) > 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"amp": "bfloat16", "clip": 0.5, "accumulate": 2, "image_size": 40},
        {"amp": "float16"},
        {"class_weights": True, "label_smoothing": 0.1, "best": "balanced_accuracy"},
        {"weighted_sampler": True, "focal_gamma": 2, "best": "auroc"},
        {"freeze": True, "ema": 0.5, "no_flip": True},
        {"network": [*NETWORK, "in_chans=1", "mixer=depthwise"], "colour_jitter": 0.3, "rotation": 30, "min_scale": 0.5},
        {"model": "hifuse_base", "network": [*NETWORK[:1], NETWORK[2], "depths=[1, 1, 2, 1]"], "image_size": 33},
    ],
    ids=",".join,
)
@pytest.mark.slow
def test_every_option_trains(run, tmp_path, data, options):
    done = run("train", data, "-o", tmp_path / "run", *flags(**options))
    assert done.exit_code == 0, done.output
    (row,) = read_csv(tmp_path / "run" / "log.csv")
    assert float(row["train_loss"]) > 0
    out = tmp_path / "out.csv"
    assert run("predict", data / "val", "--checkpoint", tmp_path / "run" / "last.safetensors", "-o", out).exit_code == 0
    assert len(read_csv(out)) == 6


def test_fine_tuning_from_other_classes(run, finished, tmp_path, data, monkeypatch):
    folder, _ = finished
    monkeypatch.chdir(folder)
    for split in ("train", "val"):
        shutil.copytree(data / split / "dark", tmp_path / "data" / split / "a")
        shutil.copytree(data / split / "light", tmp_path / "data" / split / "b")
    done = run(
        "train", tmp_path / "data", "-o", tmp_path / "run", *flags(network=[], init=folder / "best.safetensors", freeze=True)
    )
    assert done.exit_code == 0, done.output
    assert "has other classes (2): the classifier is a new one, of 2." in done.stderr
    old, new = load_file(folder / "best.safetensors"), load_file(tmp_path / "run" / "last.safetensors")
    assert {name for name in old if not torch.equal(old[name], new[name])} == {
        "conv_head.weight",
        "conv_head.bias",
        "head.weight",
    }


@pytest.mark.parametrize("classes", [["dark", "light"], ["a", "b", "c"]])
def test_weights_of_a_checkpoint_lie_as_those_of_a_resumed_run_do(finished, classes):
    """On where they begin, the bits of a product depend."""
    configuration = Configuration(init=str(finished[0] / "last.safetensors"))
    network = make_network(configuration, classes, None, lambda _: None)
    assert network.options.num_classes == len(classes)
    assert not [name for name, tensor in network.state_dict().items() if tensor.data_ptr() % 64]
    known = create_model_from_checkpoint(configuration.init).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, known[name]) or (len(classes) == 3 and name.startswith(("conv_head.", "head.")))


def test_a_folder_of_classes_is_split_and_the_splits_can_be_read_back(run, tmp_path, data):
    done = run("train", data / "train", "-o", tmp_path / "a", *flags(val_share=0.3, seed=3))
    assert done.exit_code == 0, done.output
    splits = [e.split for e in read_examples(tmp_path / "a" / "splits.csv")]
    assert (splits.count("train"), splits.count("val")) == (10, 4)
    done = run("train", tmp_path / "a" / "splits.csv", "-o", tmp_path / "b", *flags(seed=3))
    assert done.exit_code == 0, done.output
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in "ab")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_that_is_not_finite_names_its_images_and_keeps_what_was_written(run, tmp_path, data):
    done = run("train", data, "-o", tmp_path / "run", *flags(epochs=9, lr=1e30, warmup_epochs=0, save_every=1))
    assert done.exit_code == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: the ")
    assert "is not finite, with the images " in error or "is not finite for the validation image" in error
    assert str(data) in error
    with safe_open(tmp_path / "run" / "state" / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["hifuse_fast.training"])["progress"]["step"] >= 1


def test_the_loss_names_the_images_that_are_to_blame(run, tmp_path, data, monkeypatch):
    def broken(logits, labels, weights, configuration):
        return torch.where(labels == 1, torch.inf, logits.sum(-1))

    monkeypatch.setattr(loop.recipe, "losses_of", broken)
    done = run("train", data, "-o", tmp_path / "run", *flags())
    assert done.exit_code == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Error: the loss of step 1 (epoch 1) is not finite, with the images ")
    assert "light" in error
    assert "dark" not in error


def test_logs_for_tensorboard(run, tmp_path, data):
    pytest.importorskip("tensorboard")
    done = run("train", data, "-o", tmp_path / "run", *flags(tensorboard=True))
    assert done.exit_code == 0, done.output
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_bad_input_is_one_line_and_nothing_is_made(run, tmp_path, data, finished):
    out, folder = tmp_path / "run", finished[0]
    save_checkpoint(
        HiFuse(2, in_chans=4, dims=(8, 16, 24, 32), depths=(1,) * 4, num_heads=(1,) * 4), tmp_path / "c.safetensors"
    )
    (tmp_path / "c.toml").write_text("epoch = 3")
    cases = {
        f"Error: data {tmp_path / 'absent'}: no such file or folder": [tmp_path / "absent", *flags()],
        "Error: DATA must be given: the folder or the CSV file of the images": flags(),
        "unknown setting 'epoch'; did you mean epochs?": [data, "--config", tmp_path / "c.toml"],
        "c.tom cannot be read: No such file or directory": [data, "--config", tmp_path / "c.tom"],
        "Error: network: unknown option dim": [data, *flags(network=["dim=3"])],
        "num_heads[0] must divide the width 8, got 3": [data, *flags(network=[*NETWORK, "num_heads=[3,3,3,3]"])],
        "Error: network: depths, dims, num_heads cannot be overridden": [data, *flags(init=folder / "last.safetensors")],
        "x.pth: no such file": [data, *flags(network=[], init="x.pth")],
        "in_chans must be 3, or 1 for greyscale, got 4": [data, *flags(network=[], init=tmp_path / "c.safetensors")],
        "is no hifuse_base: its depths are": [data, *flags(network=[], init=folder / "last.safetensors", model="hifuse_base")],
        "batch_size 13 leaves a part of one image": [data, *flags(batch_size=13)],
        "the batch_size must be at least 5": [data, *flags(accumulate=5)],
        "device must be auto, cpu, cuda or cuda:N, got 'tpu'": [data, *flags(device="tpu")],
        "sync_batch_norm is for GPUs": [data, *flags(sync_batch_norm=True, device="cpu")],
        "epochs must be at least 1, got 0": [data, *flags(epochs=0)],
        "group_by must be a column or a regular expression, got '('": [data, *flags(group_by="(")],
    }  # fmt: skip
    for message, arguments in cases.items():
        assert message in refused(run, "-o", out, *arguments), message
        assert not out.exists(), message
    (tmp_path / "empty").mkdir()
    assert "DATA must be given" in refused(run, "-o", tmp_path / "empty", "--resume", *flags())
    assert list((tmp_path / "empty").iterdir()) == []
    (tmp_path / "file").touch()
    assert "exists and is no folder" in refused(run, data, "-o", tmp_path / "file", *flags())
    assert f"output {folder} holds a run: --resume continues it" in refused(run, data, "-o", folder, *flags())
    assert "cannot be resumed: no such folder" in refused(run, data, "-o", out, "--resume", *flags())


def test_a_run_lies_beside_its_data_and_replaces_none(run, tmp_path, data):
    """In a folder of classes it would be one of them when the run is resumed."""
    images = shutil.copytree(data / "train", tmp_path / "images")
    for out in (images, images / "runs" / "first"):
        message = refused(run, images, "-o", out, *flags())
        assert message == f"Error: output must not lie in {images}, whose images are read; got {out}"
        assert sorted(path.name for path in images.iterdir()) == ["dark", "light"]
    rows = "path,label,patient\n" + "".join(f"images/{path.parent.name}/{path.name},{path.parent.name},p\n" for path in
                                            sorted(images.rglob("*.png")))  # fmt: skip
    (tmp_path / "splits.csv").write_text(rows)
    assert "another splits.csv in place of the data" in refused(run, tmp_path / "splits.csv", "-o", tmp_path, *flags())
    assert (tmp_path / "splits.csv").read_text() == rows


def test_files_of_others_are_left_alone(run, tmp_path, data):
    out, left = tmp_path / "run", ".0123456789ab.tmp"
    (out / ".folder.tmp").mkdir(parents=True)
    for name in (".notes.tmp", left):
        (out / name).write_text("kept")
    assert run("train", data, "-o", out, *flags()).exit_code == 0
    assert (out / ".folder.tmp").exists()
    assert (out / ".notes.tmp").read_text() == "kept"
    assert not (out / left).exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [({"WORLD_SIZE": "2"}, "RANK must be a number, got ''"), ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number, got 'two'")],
)
def test_an_environment_that_names_no_process(run, tmp_path, data, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert f"the environment's {message}" in refused(run, data, "-o", tmp_path / "run", *flags())


def test_a_worker_that_the_system_ends_is_no_defect(run, tmp_path, data, monkeypatch):
    monkeypatch.setattr(ImageSet, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    message = refused(run, data, "-o", tmp_path / "run", *flags(workers=1))
    assert message.startswith("Error: a process that reads images has ended: DataLoader worker (pid")


def test_a_missing_package_is_named_with_its_extra(run, tmp_path, data, monkeypatch):
    from hifuse_fast.app.training import plan

    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None if name == "sklearn" else object())
    message = "Error: training needs scikit-learn: pip install 'hifuse_fast[train]'"
    assert refused(run, data, "-o", tmp_path / "run", *flags()) == message
    assert not (tmp_path / "run").exists()


def test_a_resume_with_another_configuration_names_what_differs(run, finished, data, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    error = refused(run, "-o", folder, "--resume", "--epochs", 3, "--lr", 0.5, "--workers", 1)
    assert "epochs was 2 and is 3; lr was 0.001 and is 0.5; " in error
    assert "workers was 0 and is 1; --override lets data, max_pixels, workers" in error
    error = refused(run, "-o", folder, "--resume", "--override", "--epochs", 3, "--workers", 1)
    assert error.endswith("with another configuration: epochs was 2 and is 3")
    assert run("train", "-o", folder, "--resume", "--override", "--workers", 1).exit_code == 0
