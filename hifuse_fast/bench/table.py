"""Rows as a table: on the terminal (rich) and in a page (markdown)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from hifuse_fast.bench.machine import BUSY
from hifuse_fast.bench.rows import Conditions, Row

PRODUCT = "hifuse_fast"  #: the engine that the others are compared with in the engines' tables
_LOG_WIDTH = 128
Column = tuple[str, Callable[[Row], str]]


def console() -> Console:
    """The terminal; wide where the output goes to a file or a pipe, which have no width."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=_LOG_WIDTH)


def number(value: float | None, digits: int = 3) -> str:
    """`value` with `digits` significant digits and no exponent, "-" for None."""
    if value is None:
        return "-"
    decimals = max(0, digits - len(str(int(abs(value))))) if abs(value) >= 1 else digits
    return f"{value:.{decimals}f}"


def share(value: float | None) -> str:
    """A share as per cent."""
    return "-" if value is None else f"{100 * value:.0f} %"


def factor(value: float | None) -> str:
    """A ratio of two times."""
    return "-" if value is None else f"{value:.2f}x"


def times(row: Row) -> str:
    """p20 / p50 / p80. "-" for an engine that is missing; FAILED where the output was wrong, so that nothing was timed."""
    if row.ms_p50 is None:
        return "-" if row.missing else "FAILED"
    return " / ".join(number(value) for value in (row.ms_p20, row.ms_p50, row.ms_p80))


#: The columns of the network's table.
NETWORK: Sequence[Column] = (
    ("engine", lambda row: row.engine),
    ("dtype", lambda row: row.dtype),
    ("batch", lambda row: str(row.batch)),
    ("ms/image\np20 / p50 / p80", times),
    ("images/s", lambda row: number(row.images_per_s)),
    ("ratio", lambda row: factor(row.ratio)),
    ("peak\nMiB", lambda row: "-" if row.peak_mib is None else f"{row.peak_mib:.0f}"),
    ("of\nfloor", lambda row: share(row.floor_share)),
    ("error", lambda row: "-" if row.error is None else f"{row.error:.1e}"),
    ("note", lambda row: row.note),
)


def advantage(row: Row, found: Iterable[Row]) -> float | None:
    """How many times as fast as `row` hifuse_fast was, on the same case in the same run. None where one of them has no time."""
    own = next((each.ms_p50 for each in found if each.engine == PRODUCT and each.run == row.run), None)
    return None if row.ms_p50 is None or own is None else row.ms_p50 / own


def engines(found: Sequence[Row]) -> Sequence[Column]:
    """The columns of the table of `found`, rows of the engines' bench."""
    at = [name for name, _ in NETWORK].index("ratio")
    own: Column = (f"{PRODUCT}\nis", lambda row: factor(advantage(row, found)))
    ready: Column = ("ready\ns", lambda row: number(row.ready_s))
    return [*NETWORK[:at], own, ready, *NETWORK[at + 1 :]]


def terminal(rows: Iterable[Row], columns: Sequence[Column], title: str, caption: str) -> Table:
    """A rich table with a line between cases. Rows without a time are red, unless the engine is missing."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name, _ in columns:
        table.add_column(name, justify="left" if name in ("engine", "dtype", "note") else "right")
    case = None
    for row in rows:
        if case not in (None, (row.case, row.dtype, row.batch, row.mode)):
            table.add_section()
        case = (row.case, row.dtype, row.batch, row.mode)
        table.add_row(*(cell(row) for _, cell in columns), style="bold red" if row.ms_p50 is None and not row.missing else "")
    return table


def busy(found: Sequence[Row]) -> str:
    """What to say of rows that were timed while other processes ran; "" where there are none."""
    count = sum(BUSY in row.note for row in found)
    if not count:
        return ""
    return f"{count} of {len(found)} rows were timed beside other processes: their ratios and shares are not reliable."


def markdown(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe(conditions: Conditions) -> str:
    """The conditions of a run on one line."""
    return (
        f"{conditions.device}, {conditions.threads} threads, {conditions.isa}; hifuse_fast {conditions.package} at "
        f"{conditions.commit}, torch {conditions.torch}, Python {conditions.python}; {conditions.date[:10]}"
    )
