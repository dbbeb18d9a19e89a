"""A network in int8: what calibration decides, the gate, the certificate, the file."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hifuse_fast import CheckpointError, OptimizedHiFuse, load_optimized, optimize_for_inference
from hifuse_fast.inference import calibrate
from hifuse_fast.inference.certificate import Certificate, Part
from hifuse_fast.inference.make import Packer
from hifuse_fast.inference.source import read_source
from hifuse_fast.testing import golden_uniform
from tests.support.frozen import make

OPTIONS = {"depths": (1, 1, 1, 1), "conv_depths": (1, 1, 1, 1)}


@pytest.fixture(scope="module")
def model() -> Any:
    return make(torch.float32, **OPTIONS)


@pytest.fixture(scope="module")
def images() -> Tensor:
    brightness = golden_uniform("brightness", (32, 2, 1, 1)) * 4 - 2
    return ((golden_uniform("calibration", (32, 2, 32, 32)) * 2 - 1) * 2 + brightness).float()


@pytest.fixture(scope="module")
def network(model: Any, images: Tensor) -> OptimizedHiFuse:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "_ALONE", 8)
        return optimize_for_inference(model, torch.int8, calibration=images, most_changed=3)


def in_int8(network: OptimizedHiFuse) -> set[str]:
    return {name for name, op in network._made.items() if op.options.get("input_scale") is not None}


def test_the_certificate_says_what_is_found_again(model: Any, images: Tensor, network: OptimizedHiFuse) -> None:
    certificate = network.certificate
    assert certificate is not None
    expected = optimize_for_inference(model)(images)
    actual = network(images)
    assert isinstance(expected, Tensor)
    assert isinstance(actual, Tensor)
    actual = actual.float()  # bfloat16 on a CPU that multiplies it
    assert len(expected.argmax(1).unique()) > 1
    assert certificate.images == 32
    assert certificate.changed == int((actual.argmax(1) != expected.argmax(1)).sum()) <= certificate.most_changed == 3
    assert certificate.largest_logits_error == pytest.approx(float((actual - expected).abs().max()))
    assert certificate.probability_error == pytest.approx(float((actual.softmax(1) - expected.softmax(1)).abs().max()))
    assert 0 < certificate.logits_error < 2 * calibrate.ALLOWED


def test_parts_are_taken_while_all_are_within_what_is_allowed(network: OptimizedHiFuse) -> None:
    certificate = network.certificate
    assert certificate is not None
    assert in_int8(network) == {part.name for part in certificate.parts if part.int8}
    assert all(part.error <= part.allowed for part in certificate.parts if part.int8)
    counted = [part for part in certificate.parts if not part.is_mixer]
    assert certificate.work == pytest.approx(sum(part.work for part in counted if part.int8))
    assert 0.5 <= certificate.work <= sum(part.work for part in counted) < 1
    assert sum(part.error**2 for part in certificate.parts if part.int8) <= calibrate.ALLOWED**2
    assert max(part.allowed for part in certificate.parts) == calibrate.ALLOWED
    for part in certificate.parts:
        options = network._made[part.name].options
        assert not part.int8 or all(options[name] == scale for name, scale in part.scales.items())
        assert (len(part.scales) == 2) == part.name.endswith(".mlp")
    assert all(f"\n{part.name} " in str(certificate) for part in certificate.parts)
    assert f"class of {certificate.changed} of 32 calibration images" in certificate.summary()


@pytest.mark.parametrize(("tiles", "vectors"), [(True, True), (False, True), (False, False)], ids=str)
def test_mixers_are_parts_but_where_vectors_of_bfloat16_are_faster(
    model: Any, images: Tensor, tiles: bool, vectors: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_ALONE", 4)
    monkeypatch.setattr("hifuse_fast.inference.make.has_tiles", lambda: tiles)
    monkeypatch.setattr("hifuse_fast.inference.make.multiplies_bfloat16", lambda: vectors)
    expected = tiles or not vectors
    network = optimize_for_inference(model, torch.int8, calibration=images, most_changed=32)
    certificate = network.certificate
    assert certificate is not None
    mixers = [part for part in certificate.parts if part.is_mixer]
    assert len(mixers) == (4 if expected else 0)
    assert {part.name for part in mixers if part.int8} == {name for name in in_int8(network) if name.endswith(".mixer")}
    assert ("of 4 mixers" in certificate.summary()) == expected
    assert certificate.work < 1


def test_an_image_has_the_same_bits_in_any_batch(network: OptimizedHiFuse, images: Tensor) -> None:
    whole = network(images[:5])
    for i in range(5):
        assert torch.equal(network(images[i : i + 1])[0], whole[i])  # type: ignore[index]


def test_too_many_changes_are_refused_and_the_worst_part_is_named(
    model: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network in int8 is taken for one that changes 7 classes: parts are given back until less than half is left."""
    monkeypatch.setattr(calibrate, "_ALONE", 8)
    monkeypatch.setattr(calibrate, "LEAST_WORK", 0.8)
    found = calibrate.differences
    monkeypatch.setattr(calibrate, "differences", lambda a, b: (7, *found(a, b)[1:]))
    with pytest.raises(
        ValueError, match=r"no more than 2 calibration images may change .* worst part is [\w.]+, which alone moves"
    ):
        optimize_for_inference(model, torch.int8, calibration=images, most_changed=2)


def test_parts_that_move_the_logits_least_for_their_work_are_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared errors over the work: a 10, b 20, c 40, d 80, the mixer 30; 9 are allowed."""
    monkeypatch.setattr(calibrate, "ALLOWED", 3.0)
    shapes = {"a": (0.3, 3), "b": (0.2, 4), "c": (0.1, 4), "d": (0.0125, 1), "x.mixer": (0.2, 3)}
    parts = [Part(name, False, work, square**0.5, 0, 0, {}, {}) for name, (work, square) in shapes.items()]
    found = {part.name: part for part in next(calibrate._choices(parts))}
    assert [name for name, part in found.items() if part.int8] == ["a", "b", "d"]  # c is too much, and d still fits
    assert [round(part.allowed**2) for part in found.values()] == [9, 6, 2, 2, 2]


def test_a_part_alone_is_tried_from_its_stage_on(model: Any, network: OptimizedHiFuse, images: Tensor) -> None:
    """Which gives the bits of the whole network with that part in int8."""
    assert network.certificate is not None
    weights, dtype = read_source(model).weights, network.dtype
    plain = OptimizedHiFuse(network.configuration, Packer(weights, dtype, "auto"))
    alone = calibrate._Alone(plain, images[:11])
    assert torch.equal(alone.logits, calibrate._logits(plain, images[:11]))
    for part in network.certificate.parts:
        changed = OptimizedHiFuse(network.configuration, Packer(weights, dtype, "auto", {part.name: part.scales}))
        assert torch.equal(alone(changed, part.name), calibrate._logits(changed, images[:11]))
    assert torch.equal(alone(plain, "head"), alone.logits)


def test_mixers_leave_enough_to_the_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they would take what half of the work needs, none is in int8."""
    monkeypatch.setattr(calibrate, "ALLOWED", 1.0)
    for error, expected in ((0.1, ["a", "x.mixer"]), (0.8, ["a"])):
        parts = [Part("a", False, 0.9, 0.7, 0, 0, {}, {}), Part("x.mixer", False, 9.0, error, 0, 0, {}, {})]
        assert [part.name for part in next(calibrate._choices(parts)) if part.int8] == expected


def test_mixers_are_left_out_before_int8_is_refused() -> None:
    """The mixer moves the logits most, but for its work least: it is given back last."""
    shapes = {"a": (0.6, 1.7e-3), "b": (0.4, 2e-3), "x.mixer": (9.0, 3e-3)}
    parts = [Part(name, False, work, error, 0, 0, {}, {}) for name, (work, error) in shapes.items()]
    choices = [[part.name for part in choice if part.int8] for choice in calibrate._choices(parts)]
    assert choices == [["a", "b", "x.mixer"], ["a", "x.mixer"], ["a", "b"], ["a"], []]
    choices = [[part.name for part in choice if part.int8] for choice in calibrate._choices(parts[:2])]
    assert choices == [["a", "b"], ["a"], []]


def test_where_no_mixer_is_taken_nothing_is_tried_twice() -> None:
    shapes = {"a": (0.6, 1.7e-3), "b": (0.4, 2e-3), "x.mixer": (9.0, 0.9)}
    parts = [Part(name, False, work, error, 0, 0, {}, {}) for name, (work, error) in shapes.items()]
    choices = [[part.name for part in choice if part.int8] for choice in calibrate._choices(parts)]
    assert choices == [["a", "b"], ["a"], []]


def test_parts_with_the_most_error_for_their_work_are_given_back_first() -> None:
    """Squared errors of 9, 4, 4, 1 and 2: a quarter of the 18 in int8 is 4.5, so the second best is not enough alone."""
    shapes = {"large": (0.5, 3.0), "small": (0.01, 2.0), "middle": (0.1, 2.0), "least": (0.3, 1.0), "float": (0.01, 2**0.5)}
    parts = [Part(name, name != "float", work, error, 9, 0, {}, {}) for name, (work, error) in shapes.items()]
    found = calibrate._give_back(parts)
    assert [part.name for part in found if part.int8] == ["large", "least"]
    for count in (1, 0):
        found = calibrate._give_back(found)
        assert sum(part.int8 for part in found) == count
    silent = [Part("a", True, 0.5, 0.0, 9, 0, {}, {}), Part("b", True, 0.5, 0.0, 9, 0, {}, {})]
    assert [part.int8 for part in calibrate._give_back(silent)] == [False, True]


def test_a_network_that_int8_hardly_serves_is_not_called_so(
    model: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "_ALONE", 8)
    monkeypatch.setattr(calibrate, "ALLOWED", 1e-9)
    with pytest.raises(ValueError, match=r"multiply-adds outside the mixers \d+% could, of which 50% must"):
        optimize_for_inference(model, torch.int8, calibration=images)


def bad(images: Tensor) -> list[tuple[Any, type[Exception], str]]:
    spoilt = images.clone()
    spoilt[7, 1, 3, 3] = float("inf")
    return [
        (None, ValueError, "calibration must be given with dtype=torch.int8"),
        ([images], TypeError, r"calibration must be images \[N, 2, H, W\], a torch.Tensor, got list"),
        (images[:31], ValueError, "calibration must have 32 images or more, got 31"),
        (images[:, :1], ValueError, "calibration: images must be"),
        (images[0], ValueError, "calibration: images must be"),
        (images.double(), TypeError, "calibration must be torch.float32 on the CPU, got torch.float64"),
        (spoilt, ValueError, "calibration must be finite, got image 7 with values that are not"),
    ]


@pytest.mark.parametrize("number", range(7))
def test_bad_calibration_images_are_named_before_any_work(
    number: int, model: Any, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hifuse_fast.inference.make.Packer", lambda *_: pytest.fail("weights were packed"))
    calibration, error, message = bad(images)[number]
    with pytest.raises(error, match=message) as caught:
        optimize_for_inference(model, torch.int8, calibration=calibration)
    assert "\n" not in str(caught.value)


def test_images_of_one_class_are_refused(model: Any, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"calibration must be of two classes or more, and all 32 images are of class \d"):
        optimize_for_inference(model, torch.int8, calibration=images[:1].expand(32, -1, -1, -1))


def test_activations_that_overflow_are_refused(images: Tensor) -> None:
    model = make(torch.float32, **OPTIONS)
    with torch.no_grad():
        model.downsample_layers[0][1].weight.fill_(1e38)
    with pytest.raises(ValueError, match=r"model has activations that are not finite on the calibration images, in \w+"):
        optimize_for_inference(model, torch.int8, calibration=images)


def test_what_is_not_of_int8_is_refused(model: Any, images: Tensor) -> None:
    with pytest.raises(ValueError, match=r"calibration and most_changed are for dtype=torch.int8, got torch.float32"):
        optimize_for_inference(model, calibration=images)
    with pytest.raises(ValueError, match="most_changed must be"):
        optimize_for_inference(model, torch.int8, calibration=images, most_changed=-1)
    for options in ({"num_classes": 0}, {"features_only": True}):
        with pytest.raises(ValueError, match=r"model must have a classifier of two classes or more for dtype=torch.int8"):
            optimize_for_inference(make(torch.float32, **OPTIONS, **options), torch.int8, calibration=images)


def test_the_file_has_the_network_and_its_certificate(network: OptimizedHiFuse, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    network.save(path)
    loaded = load_optimized(path)
    assert loaded.certificate == network.certificate
    assert in_int8(loaded) == in_int8(network)
    assert torch.equal(loaded(images[:3]), network(images[:3]))  # type: ignore[arg-type]


def test_a_copy_computes_the_same(network: OptimizedHiFuse, images: Tensor) -> None:
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(images[:2]), network(images[:2]))
        assert other.certificate == network.certificate


@pytest.mark.slow
def test_it_can_be_exported_and_compiled(network: OptimizedHiFuse, images: Tensor) -> None:
    x = images[:2]
    assert torch.equal(torch.export.export(network, (x,)).module()(x), network(x))  # type: ignore[arg-type]
    torch._dynamo.reset()
    assert torch.equal(torch.compile(network, fullgraph=True, backend="eager")(x), network(x))


def break_certificate(metadata: dict[str, str]) -> None:
    certificate = json.loads(metadata["certificate"])
    del certificate["parts"][0]["error"]
    metadata["certificate"] = json.dumps(certificate)


def break_scale(metadata: dict[str, str], scale: Any) -> None:
    ops = json.loads(metadata["ops"])
    ops["fu1.mlp"]["options"]["hidden_scale"] = scale
    metadata["ops"] = json.dumps(ops)


@pytest.mark.parametrize(
    ("break_file", "message"),
    [
        (lambda metadata: metadata.pop("certificate"), "it has ops in int8 and no certificate of them"),
        (break_certificate, "a part must have allowed, error"),
        (lambda metadata: metadata.update(certificate="[]"), "its configuration does not fit"),
        (lambda metadata: break_scale(metadata, -1.0), "the option hidden_scale of fu1.mlp must be None, got -1.0"),
        (lambda metadata: break_scale(metadata, "1"), "the option hidden_scale of fu1.mlp must be None, got '1'"),
        (lambda metadata: break_scale(metadata, None), "its configuration does not fit"),
        (lambda metadata: metadata.update(version="11"), "version must be 10, got 11"),
    ],
    ids=["no certificate", "half a certificate", "a list", "negative", "text", "none", "newer"],
)
def test_files_that_do_not_fit_are_refused_in_one_line(
    break_file: Any, message: str, network: OptimizedHiFuse, tmp_path: Path
) -> None:
    path = tmp_path / "network.safetensors"
    network.save(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    break_file(metadata)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_optimized(path)
    assert "\n" not in str(caught.value)


def test_a_certificate_of_other_numbers_is_refused(network: OptimizedHiFuse) -> None:
    assert network.certificate is not None
    good = network.certificate.to_dict()
    assert Certificate.from_dict(json.loads(json.dumps(good))) == network.certificate
    for name, value in (("changed", "0"), ("work", float("nan")), ("images", None)):
        with pytest.raises((TypeError, ValueError), match=f"{name} of a certificate must be finite numbers"):
            Certificate.from_dict({**good, name: value})
