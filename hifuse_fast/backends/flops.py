"""FLOP formulas of operators, for `torch.utils.flop_counter.FlopCounterMode`.

That module takes most of a second to import, because it imports Triton. So formulas wait here until somebody imports it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_waiting: list[tuple[Any, Callable[..., int]]] = []


def register(operator: Any, formula: Callable[..., int]) -> None:
    """Let FLOP counters count `operator`, a packet of torch.ops: as `formula(*args, out_val, **kwargs)`, of tensors."""
    if _COUNTER in sys.modules:
        sys.modules[_COUNTER].register_flop_formula(operator, get_raw=True)(formula)
    else:
        _waiting.append((operator, formula))


class _Finder:
    """Registers what waits as soon as the module of the counter has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                while _waiting:
                    operator, formula = _waiting.pop()
                    module.register_flop_formula(operator, get_raw=True)(formula)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
