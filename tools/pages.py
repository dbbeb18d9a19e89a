"""Rewrites the pages' tables from the committed rows: `python -m tools.pages`, or `--check` to see that they are current.

A page marks a block by `<!-- results:NAME -->` and `<!-- /results -->`, each on a line of its own; what is between them is
replaced. NAME is one of `BLOCKS`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

import click

from benchmarks import int8
from benchmarks.demo.result import Result
from hifuse_fast.bench import rows, table
from hifuse_fast.bench.rows import Row
from hifuse_fast.bench.turns import OWN, best_own
from hifuse_fast.tuning import table_file
from hifuse_fast.tuning.floors import predictions
from tools import predicted, saved

PAGES = ("README.md", "docs/results.md", "docs/demo.md")
RESULTS = "benchmarks/results"
CASE = ("case", "batch", "dtype", "mode")  #: the columns that name a case of an op
MODEL = "hifuse_small"  #: of the summaries
EAGER = ("eager", "eager channels_last")  #: PyTorch without a compiler
COMPILED = ("torch.compile", "compile")
OWN_GRAPH = ("onnxruntime", "openvino latency", "openvino throughput")  #: engines that were given the graph of our own network
OWN_GRAPH_NOTE = "onnxruntime and openvino were given the graph of our own network: no claim rests on their rows."
NOT_MEASURED = "Not measured yet.\n"
_BLOCK = re.compile(r"^(<!-- results:(\S+) -->\n)(.*?)^(<!-- /results -->)$", re.MULTILINE | re.DOTALL)


def summary(found: Sequence[Row]) -> str:
    """HiFuse Small in PyTorch and in hifuse_fast: a line a machine, dtype and batch size, of the newest run of these."""
    rows_ = [row for row in found if row.suite in ("engines", "gpu_network") and row.case == MODEL and row.mode == "inference"]
    if not rows_:
        return NOT_MEASURED
    newest = {_case(row): row for row in sorted(rows_, key=lambda row: row.date)}
    lines: dict[tuple[str, ...], list[Row]] = {}
    for row in rows_:
        if table.describe(row) == table.describe(newest[_case(row)]):
            lines.setdefault(_case(row), []).append(row)
    head = ["machine", "dtype", "batch", "PyTorch eager", "torch.compile", "hifuse_fast", "speedup", "measured"]
    shown = table.markdown(head, (_summary_line(case, lines[case]) for case in sorted(lines, key=_case_order)))
    return "\n\n".join(filter(None, [shown, table.busy([row for group in lines.values() for row in group])])) + "\n"


def network(found: Sequence[Row]) -> str:
    """Every row of the network bench, a table a device, model and run."""
    return _tables([row for row in found if row.suite == "network"], _network_table)


def engines(found: Sequence[Row]) -> str:
    """Every row of the engines' bench, a table a device, model and run."""
    return _tables([row for row in found if row.suite == "engines"], _engines_table)


def engines_summary(found: Sequence[Row]) -> str:
    """HiFuse Small: a line an engine, a column a dtype and batch size, with how many times as fast the product is.

    Without the product beside them, the times of a dtype and batch size compare nothing: such columns are left out.
    """
    small = [row for row in found if row.suite == "engines" and row.case == MODEL]
    compared = {_column(row) for row in small if row.engine == table.PRODUCT and row.ms_p50 is not None}
    return _tables([row for row in small if _column(row) in compared], _engines_summary)


def busy(found: Sequence[Row]) -> str:
    """HiFuse beside processes that compute all the time, a table a device, model and run."""
    return _tables([row for row in found if row.suite == "busy"], _modes_table)


def growth(found: Sequence[Row]) -> str:
    """What a pixel costs in large images, a line a size with the small images beside it."""
    return _tables([row for row in found if row.suite == "growth"], _growth_table)


def training(found: Sequence[Row]) -> str:
    """A training step on a CPU, a line an engine."""
    return _tables([row for row in found if row.suite == "training"], _engines_table)


def window_attention(found: Sequence[Row]) -> str:
    """Every case of the op, a line a case with the engines side by side."""
    return _tables([row for row in found if row.suite == "window_attention"], _op_table)


def window_attention_summary(found: Sequence[Row]) -> str:
    """For each peer the worst, the median and the best case of the native kernel."""
    return _tables([row for row in found if row.suite == "window_attention"], _op_summary)


def prepared_ops(found: Sequence[Row]) -> str:
    """Every case of the prepared ops, a line a case with the engines side by side."""
    return _tables([row for row in found if row.suite == "prepared_ops"], _prepared_table)


def gpu_ops(found: Sequence[Row]) -> str:
    """Every case of the ops and blocks on CUDA devices, a line a case with the engines side by side."""
    return _tables([row for row in found if row.suite == "gpu_ops"], _op_table)


def gpu_ops_summary(found: Sequence[Row]) -> str:
    """For each peer the worst, the median and the best case of our kernels on CUDA devices."""
    return _tables([row for row in found if row.suite == "gpu_ops"], _op_summary)


def gpu_network(found: Sequence[Row]) -> str:
    """Every row of the network on CUDA devices, inference and training, a table a device, model and run."""
    return _tables([row for row in found if row.suite == "gpu_network"], _modes_table)


def gpu_predictions(_: Sequence[Row]) -> str:
    """The floor of every call on an H200, of no row at all."""
    head, body = predictions()
    note = "bfloat16 at 4.3 TB/s and 790 TFLOP/s, each tensor moved once: predicted, not yet measured."
    return f"{table.markdown(head, body)}\n\nH200, {note}\n"


def gpu_predicted(found: Sequence[Row]) -> str:
    """What calls on a GPU were predicted to take, and what they took."""
    return predicted.page(found)


def gpu_choices(_: Sequence[Row]) -> str:
    """What serves each op on a GPU, from the tables in `hifuse_fast/backends/tables`."""
    return table.markdown(*table_file.described()) + "\n"


def demo(_: Sequence[Row]) -> str:
    """What `make demo` came to, of a file of its own."""
    path = Path(__file__).parents[1] / RESULTS / "demo.json"
    return Result.read(path).page() if path.exists() else NOT_MEASURED


def int8_accuracy(_: Sequence[Row]) -> str:
    """What int8 changes of the demo's network, of a file of its own."""
    path = Path(__file__).parents[1] / RESULTS / "int8.json"
    return int8.Result.read(path).page() if path.exists() else NOT_MEASURED


def saved_for_backward(_: Sequence[Row]) -> str:
    """What autograd keeps of a training step, of no row at all."""
    head, body = saved.table()
    note = f"B = {saved.BATCH}, bfloat16, {saved.SIZE} x {saved.SIZE}: counted from shapes, nothing was measured."
    return f"{table.markdown(head, body)}\n\n{note}\n"


BLOCKS: dict[str, Callable[[Sequence[Row]], str]] = {
    "summary": summary,
    "network": network,
    "engines": engines,
    "engines_summary": engines_summary,
    "busy": busy,
    "growth": growth,
    "training": training,
    "window_attention": window_attention,
    "window_attention_summary": window_attention_summary,
    "prepared_ops": prepared_ops,
    "gpu_ops": gpu_ops,
    "gpu_ops_summary": gpu_ops_summary,
    "gpu_network": gpu_network,
    "gpu_predictions": gpu_predictions,
    "gpu_predicted": gpu_predicted,
    "saved_for_backward": saved_for_backward,
    "gpu_choices": gpu_choices,
    "demo": demo,
    "int8": int8_accuracy,
}


def _tables(found: Sequence[Row], make: Callable[[Sequence[Row]], str]) -> str:
    """A table for each set of conditions, which stand under it."""
    if not found:
        return NOT_MEASURED
    ordered = sorted(found, key=_run)  # stable: the rows of a run stay in their order
    parts = []
    for _, group in groupby(ordered, key=_run):
        same = list(group)
        notes = [f"{table.describe(same[0])}.", table.busy(same), OWN_GRAPH_NOTE if _own_graph(same) else ""]
        parts.append(f"{make(same)}\n\n{' '.join(filter(None, notes))}\n")
    return "\n".join(parts)


def _own_graph(found: Sequence[Row]) -> bool:
    """Rows from before each engine got both graphs: since then their notes say which one was the faster."""
    return any(row.engine in OWN_GRAPH and row.ms_p50 is not None and "graph" not in row.note for row in found)


def _case(row: Row) -> tuple[str, ...]:
    return (row.device, row.dtype, f"{row.batch}")


def _case_order(case: tuple[str, ...]) -> tuple[str, bool, int]:
    """By machine, float32 before the others, then by batch size."""
    device, dtype, batch = case
    return (device, dtype != "float32", int(batch))


def _column(row: Row) -> tuple[str, str, int]:
    """What the rows of one column of the engines' summary have in common."""
    return (table.describe(row), row.dtype, row.batch)


def _summary_line(case: tuple[str, ...], found: Sequence[Row]) -> list[str]:
    """The fastest of PyTorch's ways, eager and compiled, beside our engine, and the conditions of the run."""

    def best(engines: Sequence[str]) -> float | None:
        return min((row.ms_p50 for row in found if row.engine in engines and row.ms_p50 is not None), default=None)

    eager, compiled, own = (best(engines) for engines in (EAGER, COMPILED, (table.PRODUCT,)))
    peers = [time for time in (eager, compiled) if time is not None]
    advantage = table.factor(min(peers) / own) if peers and own else "-"
    run = found[0]
    where = f"{run.threads} threads, {run.isa}; torch {run.torch}; {run.commit}, {run.date[:10]}"
    return [*case, *(table.number(time) for time in (eager, compiled, own)), advantage, where]


def _run(row: Row) -> tuple[str, str]:
    """What the rows of one table have in common: the conditions as they are printed, and the model where there is one."""
    return (table.describe(row), row.case if row.suite in ("network", "engines", "busy", "training", "gpu_network") else "")


def _network_table(found: Sequence[Row]) -> str:
    return _row_table(found, table.NETWORK)


def _engines_table(found: Sequence[Row]) -> str:
    return _row_table(found, table.engines(found))


def _modes_table(found: Sequence[Row]) -> str:
    return _row_table(found, [("mode", lambda row: row.mode), *table.engines(found)])


def _engines_summary(found: Sequence[Row]) -> str:
    cases = list(dict.fromkeys((row.dtype, row.batch) for row in found))
    cells = {(row.engine, row.dtype, row.batch): _time_and_factor(row, found) for row in found}
    body = [
        [engine, *(cells.get((engine, *case), "-") for case in cases)] for engine in dict.fromkeys(row.engine for row in found)
    ]
    return table.markdown(["ms/image", *(f"{dtype}, batch {batch}" for dtype, batch in cases)], body)


def _time_and_factor(row: Row, found: Sequence[Row]) -> str:
    if row.ms_p50 is None:
        return table.times(row)
    times = table.advantage(row, found)
    return table.number(row.ms_p50) + ("" if times is None or row.engine == table.PRODUCT else f" ({table.factor(times)})")


def _growth_table(found: Sequence[Row]) -> str:
    body = []
    for small, large in zip(found[::2], found[1::2], strict=True):
        times = [table.number(row.ms_p50) for row in (small, large)]
        cost = table.factor(None if large.ratio is None else 1 / large.ratio)
        body.append([large.case, large.dtype, large.engine, *times, cost])
    return table.markdown(["model", "dtype", "image", "in images of 224 x 224, ms", "in this one, ms", "a pixel costs"], body)


def _row_table(found: Sequence[Row], shown: Sequence[table.Column]) -> str:
    """A line a row."""
    columns = [("model", lambda row: row.case), *shown]
    head = [name.replace("\n", " ") for name, _ in columns]
    return table.markdown(head, ([cell(row) for _, cell in columns] for row in found))


def _prepared_table(found: Sequence[Row]) -> str:
    return _op_table(found, CASE[:-1])  # there is one mode


def _cases(found: Sequence[Row], columns: Sequence[str]) -> dict[tuple[str, ...], dict[str, Row]]:
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in found:
        cases.setdefault(tuple(str(getattr(row, name)) for name in columns), {})[row.engine] = row
    return cases


def _op_table(found: Sequence[Row], columns: Sequence[str] = CASE) -> str:
    engines = list(dict.fromkeys(row.engine for row in found))
    peers, ours = [name for name in engines if name not in OWN], " or ".join(name for name in engines if name in OWN)
    body = []
    for case, by_engine in _cases(found, columns).items():
        milliseconds = [table.number(by_engine[name].ms_p50) if name in by_engine else "-" for name in engines]
        own = best_own(by_engine.values())
        share = table.share(own.floor_share if own else None)
        body.append([*case, *milliseconds, *(_ratio(by_engine.get(peer), own) for peer in peers), share])
    head = [*columns, *(f"{name}, ms" for name in engines), *(f"{ours} vs {peer}" for peer in peers)]
    return table.markdown([*head, f"{ours}, of floor"], body)


def _op_summary(found: Sequence[Row]) -> str:
    ratios: dict[tuple[str, str, str, str], list[float]] = {}
    for (_, _, dtype, mode), by_engine in _cases(found, CASE).items():
        timed = {name: row.ms_p50 for name, row in by_engine.items() if row.ms_p50}
        for own, peer in itertools.product(timed, timed):
            if own in OWN and peer not in OWN:
                ratios.setdefault((mode, dtype, own, peer), []).append(timed[peer] / timed[own])
    ours = " or ".join(dict.fromkeys(own for _, _, own, _ in ratios))
    head = ["mode", "dtype", f"{ours} against", "worst case", "median", "best case", "cases"]
    several = " or " in ours
    body = [
        [mode, dtype, f"{own}, {peer}" if several else peer]
        + [table.factor(value) for value in (min(group), median(group), max(group))] + [str(len(group))]
        for (mode, dtype, own, peer), group in sorted(ratios.items())
    ]  # fmt: skip
    return table.markdown(head, body)


def _ratio(peer: Row | None, own: Row | None) -> str:
    if not (peer and own and peer.ms_p50 and own.ms_p50):
        return "-"
    return table.factor(peer.ms_p50 / own.ms_p50)


def render(page: str, found: Sequence[Row]) -> str:
    """The page with its blocks filled in.

    Raises:
        ValueError: a block of an unknown name, or without an end.
    """

    def fill(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in BLOCKS:
            raise ValueError(f"results:{name} is no block; there are {', '.join(BLOCKS)}")
        return f"{begin}\n{BLOCKS[name](found)}\n{end}"

    marks = len(re.findall(r"^<!-- (?:results:\S+|/results) -->$", page, re.MULTILINE))
    filled, count = _BLOCK.subn(fill, page)
    if marks != 2 * count:
        raise ValueError("a block needs <!-- results:NAME --> and <!-- /results -->, each on its own line")
    return filled


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 when a page is stale.")
@click.option("--root", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path(), help="The checkout.")
def main(*, check: bool, root: Path) -> None:
    """Rewrite the tables of README.md, docs/results.md and docs/demo.md from benchmarks/results."""
    try:
        found = [row for file in sorted((root / RESULTS).glob("*.csv")) for row in rows.read(file)]
        pages = {path: path.read_text(encoding="utf-8") for path in (root / name for name in PAGES) if path.exists()}
        stale = {path: new for path, old in pages.items() if (new := render(old, found)) != old}
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if not check:
        for path, text in stale.items():
            path.write_text(text, encoding="utf-8")
            click.echo(f"rewritten: {path}")
    elif stale:
        raise click.ClickException(f"stale: {', '.join(map(str, stale))}; run python -m tools.pages")


if __name__ == "__main__":
    main()
