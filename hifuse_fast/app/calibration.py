"""Temperature scaling: one number that makes a network's probabilities honest, and changes no decision."""

from __future__ import annotations

import numpy as np

from hifuse_fast.app.extras import needs
from hifuse_fast.app.metrics import Outcomes

RANGE = (0.01, 100.0)  #: of temperatures


def fit_temperature(outcomes: Outcomes) -> float:
    """The T for which softmax(logits / T) gives the images' classes the largest likelihood.

    Args:
        outcomes: of images that were neither trained on nor are to be evaluated.

    Returns:
        T, from 0.01 to 100; see `is_determined`.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    rows = np.arange(len(outcomes.truth))

    def loss(log_temperature: float) -> float:
        p = outcomes.scaled(float(np.exp(log_temperature))).probabilities[rows, outcomes.truth]
        return float(-np.log(np.maximum(p, np.finfo(np.float64).tiny)).mean())

    # The loss is convex in 1 / T, so it has one valley in log T.
    found = needs("scipy.optimize", "evaluate").minimize_scalar(
        loss, bounds=np.log(RANGE), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def is_determined(temperature: float) -> bool:
    """Whether the images had a best temperature. Where they are all classified right, less is always better."""
    return 2 * RANGE[0] < temperature < RANGE[1] / 2
