"""Which calls of window attention kernels serve, in whatever language they are written."""

from __future__ import annotations


def why_not(head_dims: range, head_dim: int, dropout_p: float) -> str | None:
    """The reason that kernels for these widths of a head cannot serve a call, or None."""
    # torch.compile cannot ask a range.
    if head_dim < head_dims.start or head_dim >= head_dims.stop or head_dim % head_dims.step:
        those = f"multiples of {head_dims.step}" if head_dims.step > 1 else "those"
        return f"head_dim {head_dim} has no kernel: {those} from {head_dims[0]} to {head_dims[-1]} have"
    if dropout_p:
        return f"attention dropout is not fused: dropout_p = {dropout_p}"
    return None
