"""The least that each call takes on an H200: bytes, operations, and the time of the slower of the two. Nothing is measured."""

from __future__ import annotations

from hifuse_fast.tuning.calls import DTYPES, MODES, Call, all_calls

BATCHES = (64, 1)


def predictions(dtype: str = "bfloat16") -> tuple[list[str], list[list[str]]]:
    """The head and the lines of a table: for each call MB, GFLOP and the roofline in microseconds."""
    columns = [(batch, mode) for batch in BATCHES for mode in MODES]
    head = ["call", *(f"B = {batch} {mode}: MB, GFLOP, us" for batch, mode in columns)]
    return head, [[call.name, *(_cell(call, batch, mode, dtype) for batch, mode in columns)] for call in all_calls()]


def _cell(call: Call, batch: int, mode: str, dtype: str) -> str:
    moved, flop = call.moved(batch, mode, DTYPES[dtype].itemsize), call.flop(batch, mode)
    return f"{moved / 1e6:.2f}, {flop / 1e9:.2f}, {1e6 * call.roofline(batch, mode, dtype):.2f}"
