"""The stem in Triton."""

from __future__ import annotations

from types import ModuleType
from typing import ClassVar

from hifuse_fast.ops.functions.layer_norm import triton as layer_norm
from hifuse_fast.ops.prepared.stem import launched

why_not = layer_norm.why_not


class Stem(launched.Stem):
    layer_norm: ClassVar[ModuleType] = layer_norm
