"""What the errors of the linear's algorithms may be; the MLP's first product has the same ones."""

from __future__ import annotations

import torch

from hifuse_fast.testing import RULE, Bound

# Errors of Strassen's product, which is of float32: two or three of PyTorch's as a rule (l2, and its largest), where the rule
# says two. A result is what is left of up to four products of sums of quarters, which are twice as large as what they stand
# for. In exchange an eighth of the products need not be made. A library may err by less than one rounding where it multiplies
# one row, which it sums in many short sums; that says nothing of ours, so five roundings are allowed beside.
STRASSEN = Bound(errors=5, largest=5 * torch.finfo(torch.float32).eps)


def bound(algorithm: str) -> Bound:
    """The bound of `linear`, or of `mlp`, by an algorithm that its options may record."""
    return STRASSEN if algorithm == "strassen" else RULE
