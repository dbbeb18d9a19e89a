"""Timing on a CUDA device: the time that the device takes, not the time that Python takes to ask for it."""

from __future__ import annotations

import gc

import torch

from hifuse_fast.bench.timing import Call

L2_BYTES = 256 * 2**20  #: more than the last cache of any GPU of today holds


class EventTimer:
    """Seconds that a call takes on the device, from a cold cache, by events around it.

    The cache is filled with zeros before, which also keeps the device busy while the call is being launched.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._zeros = torch.empty(L2_BYTES, dtype=torch.int8, device=device)
        self._begin, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Call) -> float:
        with torch.cuda.device(self._device):
            self._zeros.zero_()
            self._begin.record()
            call()
            self._end.record()
            self._end.synchronize()
        return 1e-3 * float(self._begin.elapsed_time(self._end))


def timer(device: torch.device) -> EventTimer | None:
    """What times calls on `device`; None where the clock does."""
    return EventTimer(device) if device.type == "cuda" else None


def graphed(call: Call, warmup: int = 3) -> Call:
    """`call` as one CUDA graph. A replay does the same work on the same memory, and takes the CPU next to no time.

    Raises:
        RuntimeError: what the call does cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    gc.collect()  # nothing may be freed within the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        held = call()

    def replay(held: object = held, _kept: Call = call) -> object:  # what the graph reads has to live as long as the graph
        graph.replay()
        return held

    return replay
