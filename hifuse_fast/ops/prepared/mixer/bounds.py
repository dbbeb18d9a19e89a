"""What the errors of the mixer's algorithms may be."""

from __future__ import annotations

import torch

from hifuse_fast.testing import RULE, Bound

# Float32 errors of Winograd's algorithms, of the largest value. They exceed the rule for a reason: inputs and sums of a tile
# are combined with numbers that cancel in the end, so that an error of rounding comes out larger than it went in, the more the
# larger the tile. In exchange, F(4x4) multiplies a quarter as often as the direct convolution, F(2x2) four ninths.
LARGEST = {"winograd2": 3e-6, "direct_or_winograd2": 3e-6, "winograd4": 1.5e-5, "winograd4_at_call": 1.5e-5}


def bound(algorithm: str, dtype: torch.dtype) -> Bound:
    """The bound of `mixer` by an algorithm that its options may record.

    In bfloat16 a Winograd result may be off by three times PyTorch's own error plus one rounding, where the rule says twice.
    The tests hold F(2x2) in Triton, which rounds once less than PyTorch does, to the rule itself.
    """
    if algorithm not in LARGEST:
        return RULE
    return Bound(errors=3) if dtype == torch.bfloat16 else Bound(errors=0, largest=LARGEST[algorithm])
