"""How good a network is on validation images."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def scores_of(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """loss, accuracy, balanced_accuracy and auroc of logits [n, classes].

    The AUROC is the mean over the classes, each against the rest, that some images have and others have not; NaN where no class
    is so.
    """
    from sklearn.metrics import accuracy_score, recall_score, roc_auc_score

    probabilities, truth = logits.double().softmax(-1).numpy(), labels.numpy()
    predicted = probabilities.argmax(1)
    one_sided = [
        roc_auc_score(truth == k, p) for k, p in enumerate(probabilities.T) if 0 < np.count_nonzero(truth == k) < len(truth)
    ]
    return {
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced_accuracy": float(recall_score(truth, predicted, labels=np.unique(truth), average="macro")),
        "auroc": float(np.mean(one_sided)) if one_sided else math.nan,
    }
