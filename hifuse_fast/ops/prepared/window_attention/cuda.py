"""The prepared window attention in CUDA C++."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

from hifuse_fast.ops.functions.window_attention import cuda
from hifuse_fast.ops.prepared.window_attention import launched

why_not = cuda.why_not


class WindowAttention(launched.WindowAttention):
    launchers: ClassVar[ModuleType] = cuda
