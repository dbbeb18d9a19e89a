"""A picture of the network's rows: milliseconds an image, engine beside engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hifuse_fast.bench.rows import Row
from hifuse_fast.bench.table import describe, number
from hifuse_fast.files import replacing

# Okabe and Ito's colours, told apart by colour-blind readers too; the reference is grey.
_COLORS = ("#8c8c8c", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")


def network(rows: Sequence[Row], path: Path) -> list[Path]:
    """Draw the timed rows of one run, all of one model and device, as `path` with .png and .svg. Return the files.

    A bar is the median; its whisker ends at the 20 and 80 percentiles. Without a timed row or matplotlib nothing is drawn.
    """
    timed = [row for row in rows if row.ms_p50 is not None]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    if not timed:
        return []
    engines = list(dict.fromkeys(row.engine for row in timed))
    groups = list(dict.fromkeys((row.dtype, row.batch) for row in timed))
    height = 1.5 + 0.42 * len(groups) * (len(engines) + 0.6)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    axes = figure.subplots()
    step = len(engines) + 0.6
    for row in timed:
        place = groups.index((row.dtype, row.batch)) * step + engines.index(row.engine)
        _bar(axes, row, place, _COLORS[engines.index(row.engine) % len(_COLORS)])
    axes.set_yticks([i * step + (len(engines) - 1) / 2 for i in range(len(groups))])
    axes.set_yticklabels([f"{dtype}\nbatch {batch}" for dtype, batch in groups])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.28 * max(row.ms_p80 or 0.0 for row in timed))
    axes.set_xlabel("milliseconds an image (bar: median; whisker: 20 to 80 percentile)")
    axes.set_title(f"{timed[0].case}, {timed[0].mode}: time an image, less is better", loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    handles = [axes.barh([0], [0], color=_COLORS[i % len(_COLORS)], label=engine) for i, engine in enumerate(engines)]
    axes.legend(handles=handles, frameon=False, loc="lower right")
    figure.supxlabel(describe(timed[0]), fontsize=7, color="#555555")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in files:
        with replacing(file) as unfinished:
            figure.savefig(unfinished, dpi=160, format=file.suffix.removeprefix("."))
    return files


def _bar(axes: object, row: Row, place: float, color: str) -> None:
    assert row.ms_p20 is not None
    assert row.ms_p50 is not None
    assert row.ms_p80 is not None
    whisker = [[row.ms_p50 - row.ms_p20], [row.ms_p80 - row.ms_p50]]
    draw = axes.barh  # type: ignore[attr-defined]
    draw([place], [row.ms_p50], height=0.88, color=color, xerr=whisker, error_kw={"ecolor": "#222222", "capsize": 3, "lw": 1})
    ratio = "" if row.ratio is None else f"  ({row.ratio:.2f}x)"
    text = f"  {number(row.ms_p50)} ms{ratio}"
    axes.text(row.ms_p80, place, text, va="center", fontsize=9)  # type: ignore[attr-defined]
