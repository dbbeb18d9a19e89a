"""Predicted times beside measured ones."""

from __future__ import annotations

import dataclasses

from benchmarks import gpu_subjects
from hifuse_fast.bench import rows, turns
from tests.support.paths import ROOT
from tools import predicted


def row(case: str, engine: str, ms: float | None, **changed: object) -> rows.Row:
    """Of the conditions that were predicted, unless `changed`."""
    fields: dict[str, object] = {field.name: None for field in dataclasses.fields(rows.Row)}
    fields |= {"suite": "gpu_ops", "device": predicted.DEVICE, "dtype": predicted.DTYPE, "batch": predicted.BATCH}
    return rows.Row(**{**fields, "case": case, "engine": engine, "mode": "forward", "ms_p50": ms, **changed})  # type: ignore[arg-type]


def test_every_prediction_is_of_a_call_that_is_measured() -> None:
    modes = {subject.name: subject.modes for subject in gpu_subjects.subjects()}
    for each in predicted.predictions([]):
        assert each.mode in modes[each.call], each
        assert each.engine in turns.OWN
        assert each.predicted > 0


def test_the_page_names_what_is_off_and_what_is_not_measured() -> None:
    local, path = "prepare_local_block local 56x56x96", "prepare_fuse_path path 56x56x96"
    other = [row(path, "cuda", 9.0, device="nvidia-a100"), row(path, "cuda", 9.0, batch=1), row(path, "triton", 9.0)]
    qkv = [row("prepare_linear to qkv 56x56x96", "cuda", 0.040), row("prepare_linear to qkv 7x7x768", "cuda", None)]
    page = predicted.page([row(local, "cuda", 0.050), *qkv, *other])
    assert f"| {local} | cuda | forward | 45.0 | 50.0 | 1.11x |" in page
    assert "| prepare_linear to qkv 56x56x96 | cuda | forward | 70.0 | 40.0 | 0.57x, off |" in page
    assert f"| {path} | cuda | forward | 51.0 | not yet | - |" in page
    count = len(predicted.predictions([]))
    assert f"2 of {count} are measured. Off by more than 1.5 times: prepare_linear to qkv 56x56x96 (cuda, forward)." in page
    assert "Off by" not in predicted.page([])


def test_a_page_has_it() -> None:
    assert "<!-- results:gpu_predicted -->" in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
