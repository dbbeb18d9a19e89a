"""CUDA graphs, one per shape of images. A call is one launch, because many launches can take the CPU longer than the GPU.

The first call of a shape runs as it is. The second is captured, and from then on its launches are replayed. A graph has memory
of its own: images are copied into it, results are copied out of it. Only `capture` needs CUDA.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Run = Callable[[Tensor], Any]  # images -> a tensor, or a list of tensors
Capture = Callable[[Run, Tensor], Run]

_capturing = threading.Lock()  # one at a time: captures share what PyTorch knows about the one under way


@dataclass
class _Shape:
    """What there is for images of one shape and dtype."""

    calls: int = 0
    failed: bool = False
    replay: Run | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)  # a graph has one place for images and one for results


class Graphs:
    """Runs a function by graphs of its last few shapes. Several threads may call it; calls of one shape take turns."""

    def __init__(self, capture: Capture, most_shapes: int = 4) -> None:
        self._capture, self._most_shapes = capture, most_shapes
        self._shapes: dict[tuple[Any, ...], _Shape] = {}  # by shape and dtype; the one that was used last comes last
        self._lock = threading.Lock()

    def __call__(self, run: Run, images: Tensor) -> Any:
        """run(images), in memory that no later call writes to."""
        shape = self._find(images) if images.numel() else None
        if shape is None:
            return run(images)
        with shape.lock:
            if shape.replay is None and not shape.failed:
                self._try(shape, run, images)
            if shape.replay is not None:
                return shape.replay(images)
        return run(images)

    def _find(self, images: Tensor) -> _Shape | None:
        """What there is for images such as these, or None at their first call."""
        key = (*images.shape, images.dtype)
        with self._lock:
            shape = self._shapes[key] = self._shapes.pop(key) if key in self._shapes else _Shape()
            while len(self._shapes) > self._most_shapes:
                del self._shapes[next(iter(self._shapes))]
            shape.calls += 1
            return shape if shape.calls > 1 else None

    def _try(self, shape: _Shape, run: Run, images: Tensor) -> None:
        """Capture; where that fails, calls of this shape go on as the first did."""
        try:
            with _capturing:
                shape.replay = self._capture(run, images)
        except RuntimeError as error:  # out of memory too
            shape.failed = True
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"no CUDA graph for images of {list(images.shape)}, they run without: {reason}", stacklevel=4)

    def __reduce__(self) -> Any:
        return Graphs, (self._capture, self._most_shapes)  # a copy of a network starts without graphs


def capture(run: Run, images: Tensor) -> Run:
    """A function that does what `run` does for images of this shape and dtype, as a graph of the launches that `run` makes."""
    device = images.device
    with torch.inference_mode(False):  # a tensor of inference mode could not be written to outside of it
        static = torch.empty(images.shape, dtype=images.dtype, device=device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device):
        run(static.copy_(images))  # what is done once, as loading a kernel, cannot be captured
        # Other threads may allocate meanwhile.
        with torch.cuda.graph(graph, stream=torch.cuda.Stream(device), capture_error_mode="thread_local"):
            results = run(static)
        done = torch.cuda.Event()
        done.record()

    def replay(images: Tensor) -> Any:
        with torch.cuda.device(device):
            done.wait()  # for the call before this one, should it be of another stream
            static.copy_(images)
            graph.replay()
            copied = results.clone() if isinstance(results, Tensor) else [each.clone() for each in results]
            done.record()
        return copied

    return replay
