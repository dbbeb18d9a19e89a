"""What a run came to, in a file of JSON, from which a page is made."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from hifuse_fast.bench.rows import Conditions
from hifuse_fast.files import writing


@dataclass(frozen=True)
class Saved:
    """The conditions of a run; what was found is the fields of a subclass."""

    conditions: Conditions

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Self:
        """What `write` wrote."""
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return cls(Conditions(**values.pop("conditions")), **cls.found(values))

    @classmethod
    def found(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The fields of the subclass, made of what JSON keeps of them."""
        return values
