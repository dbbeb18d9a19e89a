"""The temperature against one that is known."""

from __future__ import annotations

import numpy as np
import pytest

from hifuse_fast.app.calibration import RANGE, fit_temperature
from hifuse_fast.app.metrics import Outcomes, calibration_error

pytest.importorskip("scipy")


def drawn(temperature: float, count: int = 20000) -> Outcomes:
    """Classes drawn by softmax(logits); the network says softmax(temperature * logits)."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(count, 3))
    honest = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (honest.cumsum(1) < generator.random((count, 1))).sum(1)
    return Outcomes(truth, honest).scaled(1 / temperature)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_answers_were_made_with_is_found(temperature):
    found = drawn(temperature)
    fitted = fit_temperature(found)
    assert fitted == pytest.approx(temperature, rel=0.03)
    assert calibration_error(found.scaled(fitted)) < 0.015


def test_where_all_is_right_the_temperature_is_the_least():
    fitted = fit_temperature(Outcomes(np.array([0, 1]), np.array([[0.6, 0.4], [0.3, 0.7]])))
    assert fitted < 2 * RANGE[0]
