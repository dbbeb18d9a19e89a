"""The prepared window attention in Triton."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

from hifuse_fast.ops.functions.window_attention import triton
from hifuse_fast.ops.prepared.window_attention import launched

why_not = triton.why_not


class WindowAttention(launched.WindowAttention):
    launchers: ClassVar[ModuleType] = triton
