"""The network bench: the reference and the fast network on real images, checked, timed in turns, and written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console


def run(
    model: str = "hifuse_small",
    *,
    results: Path | None = Path("benchmarks/results"),
    images: Path | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    devices: Sequence[str] | None = None,
    threads: int | None = None,
    budget_s: float = 150.0,
    console: Console | None = None,
) -> int:
    """Measure `model` on real images: milliseconds an image of the reference and of the fast network, side by side.

    Every engine's logits are compared with those of the reference in float64 before it is timed; one that is wrong gets no
    time, is shown as failed, and makes the exit code 1.

    Args:
        model: a name of `hifuse_fast.list_models()`.
        results: folder for `<device>.csv` and the picture `<device>.png|svg`, made when missing; None writes nothing.
        images: a folder of the user's own images, used besides the samples of scikit-image; None for the samples alone.
        batch_sizes: images per call, each at least 1.
        dtypes: of "float32", "bfloat16", "float16".
        devices: of "cpu", "cuda"; None for the CPU and, where there is one, the CUDA device.
        threads: CPU threads; None for torch's choice.
        budget_s: seconds of timing in all, shared evenly by the cases (device, dtype, batch); preparation comes on top.
        console: where the table and the progress bar go; None for the terminal.

    Returns:
        The exit code: 0, or 1 when an engine's output is wrong.

    Raises:
        ValueError, FileNotFoundError: an argument that does not fit, named, before any work.
        RuntimeError: no images at all (no folder given and scikit-image not installed).
    """
    raise NotImplementedError
