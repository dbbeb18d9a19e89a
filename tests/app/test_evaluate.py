"""`hifuse-fast evaluate`: from a folder of classes to metrics, predictions and a report."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hifuse_fast import create_model_from_checkpoint, optimize_for_inference, save_checkpoint
from hifuse_fast.app.evaluate import Bootstrap, gather, measure, mistakes
from hifuse_fast.app.output import Row
from hifuse_fast.data.examples import Example, read_examples, write_examples
from tests.support.cli import CLASSES, RECORD, SMALL, by_hand, read_csv, save_noise

sklearn = pytest.importorskip("sklearn.metrics")
FEW = ["--bootstrap", 30, "--mistakes", 2, *SMALL]


@pytest.fixture
def data(tmp_path):
    """Four images of each class; the names of two say the patient."""
    for number, name in enumerate(CLASSES):
        for index in range(4):
            save_noise(tmp_path / "data" / name / f"p{index // 2}_{index}.png", 70, 64, 10 * number + index)
    return tmp_path / "data"


def test_metrics_can_be_computed_again_from_the_predictions(run, checkpoint, data, tmp_path):
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 0, done.output
    rows = read_csv(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 12
    truth = [CLASSES.index(row["true"]) for row in rows]
    p = np.array([[float(row[f"p({name})"]) for name in CLASSES] for row in rows])
    torch.testing.assert_close(torch.tensor(p[0]).float(), by_hand(checkpoint, Path(rows[0]["path"])), rtol=0, atol=1e-6)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    predicted = p.argmax(1)
    expected = {
        "accuracy": sklearn.accuracy_score(truth, predicted),
        "balanced_accuracy": sklearn.balanced_accuracy_score(truth, predicted),
        "auroc_macro": sklearn.roc_auc_score(truth, p / p.sum(1, keepdims=True), multi_class="ovr"),
        "log_loss": sklearn.log_loss(truth, p),
        "mcc": sklearn.matthews_corrcoef(truth, predicted),
    }
    for name, value in expected.items():
        metric = found["overall"][name]
        assert metric["value"] == pytest.approx(value, abs=1e-6), name
        assert metric["low"] <= metric["value"] <= metric["high"] or name == "mcc"
    assert found["confusion"] == sklearn.confusion_matrix(truth, predicted).tolist()
    assert [found["by_class"][name]["images"] for name in CLASSES] == [4, 4, 4]
    assert found["images"] == 12
    assert found["groups"] is None
    assert "No groups were given" in done.stderr
    assert re.search(r"^Accuracy +0\.\d{4}  \(", done.stdout, re.M)


class Page(HTMLParser):
    """The texts of a page, and whatever it would load from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts, self.outside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#")):
                self.outside.append((tag, value))

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_stands_alone_and_names_are_no_markup(run, checkpoint, tmp_path):
    names = ["<script>alert(1)</script>", "b & c $x$", "größe"]
    for number, name in enumerate(names):
        for index in range(3):
            save_noise(tmp_path / "data" / name.replace("/", "∕") / f"{index}.png", 70, 64, 10 * number + index)
    done = run("evaluate", checkpoint, tmp_path / "data", "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    assert page.outside == []
    assert "<script" not in text
    assert "größe" in page.texts
    shown = len(re.findall(r'<img alt="the image"', text))
    assert shown == min(2, 9 - sum(row["class"] == row["true"] for row in read_csv(tmp_path / "out" / "predictions.csv")))
    assert len(re.findall("Grad-CAM of the predicted class", text)) == shown


def test_names_of_any_bytes_are_shown(run, checkpoint, tmp_path):
    """And those that matplotlib would leave out of a legend."""
    for number, name in enumerate([os.fsdecode(b"bad\xff"), "_under", "a\nb"]):
        for index in range(2):
            save_noise(tmp_path / "data" / name / f"{index}.png", 70, 64, 10 * number + index)
    done = run("evaluate", checkpoint, tmp_path / "data", "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 0, done.output
    text = (tmp_path / "out" / "report.html").read_text()
    assert "bad?" in text
    shutil.move(tmp_path / "data" / "_under", tmp_path / "data" / "=1+1")
    done = run("evaluate", checkpoint, tmp_path / "data", "-o", tmp_path / "out", "--csv-safe", *FEW)
    assert {row["true"] for row in read_csv(tmp_path / "out" / "predictions.csv")} >= {"'=1+1", "a\nb"}
    roc = text.split("<figure>")[2]
    assert "_under" in roc


def test_files_that_cannot_be_written_are_found_before_the_work(run, checkpoint, data, tmp_path, monkeypatch):
    def ask(*_, **__):
        raise AssertionError

    monkeypatch.setattr("hifuse_fast.app.predict.predict", ask)
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 2
    assert "report.html exists and is not a regular file" in done.stderr
    table = tmp_path / "predictions.csv"
    write_examples(table, read_examples(data))
    rows = table.read_text()
    done = run("evaluate", checkpoint, table, "-o", tmp_path, *FEW)
    assert done.exit_code == 2
    assert f"output {table} is one of the inputs" in done.stderr
    assert table.read_text() == rows


def test_images_of_a_group_are_drawn_together(run, checkpoint, data, tmp_path):
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", "--group-by", r"p\d", *FEW)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (found["groups"], found["bootstrap"]["of"]) == (2, "groups")
    assert {row["group"] for row in read_csv(tmp_path / "out" / "predictions.csv")} == {"p0", "p1"}


def test_a_csv_with_splits_gives_the_part_that_is_asked_for(run, checkpoint, data, tmp_path):
    paths = sorted(data.rglob("*.png"))
    with (tmp_path / "all.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows(
            [path, path.parent.name, ("train", "val", "test", "test")[index % 4]] for index, path in enumerate(paths)
        )
    done = run("evaluate", checkpoint, tmp_path / "all.csv", "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 0, done.output
    assert [row["path"] for row in read_csv(tmp_path / "out" / "predictions.csv")] == [
        str(path) for index, path in enumerate(paths) if index % 4 > 1
    ]
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", "--calibrate", tmp_path / "all.csv", *FEW)
    assert done.exit_code == 2
    assert "is in both" in done.stderr
    with Image.open(paths[0]) as image:  # under another name, in another format
        image.save(tmp_path / "copy.bmp")
    (tmp_path / "copy.csv").write_text(f'path,label\ncopy.bmp,"{paths[0].parent.name}"\n')
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", "--calibrate", tmp_path / "copy.csv", *FEW)
    assert done.exit_code == 2
    assert f"but pixels are the same: {tmp_path / 'copy.bmp'} and {paths[0]}" in done.stderr


def test_a_temperature_changes_probabilities_and_no_decision(run, checkpoint, data, tmp_path):
    for index in range(6):  # two thirds are what the network says: it is right to be somewhat sure
        path = save_noise(tmp_path / "val.png", 70, 64, 100 + index)
        said = int(by_hand(checkpoint, path).argmax())
        folder = tmp_path / "val" / CLASSES[said if index % 3 else (said + 1) % 3]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{index}.png")
    run("evaluate", checkpoint, data, "-o", tmp_path / "raw", *FEW)
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", "--calibrate", tmp_path / "val", *FEW)
    assert done.exit_code == 0, done.output
    temperature = json.loads((tmp_path / "out" / "metrics.json").read_text())["temperature"]
    for before, after in zip(
        read_csv(tmp_path / "raw" / "predictions.csv"), read_csv(tmp_path / "out" / "predictions.csv"), strict=True
    ):
        raw, scaled = (np.array([float(row[f"p({name})"]) for name in CLASSES]) for row in (before, after))
        powers = raw ** (1 / temperature)
        np.testing.assert_allclose(scaled, powers / powers.sum(), rtol=1e-6)
        assert before["class"] == after["class"]


def test_an_image_that_cannot_be_read_is_named_and_counted(run, checkpoint, data, tmp_path):
    (data / CLASSES[1] / "broken.png").write_text("no image")
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 1
    assert "broken.png: " in done.stderr
    assert "1 of 13 images could not be used" in done.stderr
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (found["images"], found["failed"]) == (12, 1)
    [row] = [row for row in read_csv(tmp_path / "out" / "predictions.csv") if row["error"]]
    assert (row["true"], row["class"]) == (CLASSES[1], "")


def test_a_frozen_network_is_evaluated_without_gradcam(run, checkpoint, data, tmp_path):
    """And as its training says: a file of a frozen network keeps that."""
    trained, classes = tmp_path / "trained.safetensors", CLASSES[::-1]
    save_checkpoint(create_model_from_checkpoint(checkpoint), trained, {**RECORD, "classes": classes})
    optimize_for_inference(create_model_from_checkpoint(trained), backend="reference").save(tmp_path / "frozen.safetensors")
    done = run("evaluate", tmp_path / "frozen.safetensors", data, "-o", tmp_path / "out", *FEW)
    assert done.exit_code == 0, done.output
    assert "without Grad-CAM" in done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["by_class"]) == classes
    assert (metrics["preprocess"]["mean"], metrics["bits"]) == ([0.2, 0.3, 0.4], 12)
    assert "Grad-CAM of the predicted class" not in (tmp_path / "out" / "report.html").read_text()


def test_bad_input_is_one_line_and_leaves_nothing(run, checkpoint, data, tmp_path):
    save_noise(tmp_path / "two" / "a" / "0.png", 64, 64, 0)
    save_noise(tmp_path / "two" / "b" / "0.png", 64, 64, 1)
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    for arguments, message in (
        ((checkpoint, tmp_path / "absent"), "no such file or folder"),
        ((tmp_path / "absent.pth", data), "absent.pth"),
        ((checkpoint, tmp_path / "two"), "the network has 3 classes, and the images are of 2: a, b"),
        ((checkpoint, data, "--classes", tmp_path / "names.txt"), "the network has no class"),
        ((checkpoint, tmp_path / "empty"), "class 'a' has no images"),
        ((checkpoint, data, "--device", "cuda:99"), "device cuda:99 is not there"),
        ((checkpoint, data, "--std", 0, 1, 1), "std must be positive"),
        ((checkpoint, data, "--group-by", "("), "regular expression"),
    ):
        done = run("evaluate", *arguments, "-o", tmp_path / "out", *FEW)
        assert done.exit_code == 2, (message, done.output)
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    done = run("evaluate", checkpoint, data, "-o", tmp_path / "file", *FEW)
    assert done.exit_code == 2
    assert str(tmp_path / "file") in done.stderr


def rows_of(probabilities: list[list[float]], labels: list[str]) -> tuple[list[Example], list[Row]]:
    examples = [Example(Path(f"{index}.png"), label) for index, label in enumerate(labels)]
    rows = []
    for example, p in zip(examples, probabilities, strict=True):
        best = int(np.argmax(p))
        rows.append(Row(example.path, "ab"[best], p[best], tuple(p)))
    return examples, rows


def test_the_most_confident_mistakes_come_first():
    answered = gather(*rows_of([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.1, 0.9]], ["b", "b", "a", "b"]), ["a", "b"])
    assert mistakes(answered, 10) == [1, 2, 0]
    assert mistakes(answered, 1) == [1]


def test_a_class_without_images_has_no_metrics():
    answered = gather(*rows_of([[0.6, 0.4], [0.9, 0.1]], ["a", "a"]), ["a", "b"])
    found = measure(answered, ["a", "b"], Bootstrap(0))
    assert found["by_class"]["b"]["recall"] == {"value": None}
    assert found["by_class"]["a"]["recall"] == {"value": 1.0}
    assert found["overall"]["auroc_macro"] == {"value": None}
    json.dumps(found, allow_nan=False)
