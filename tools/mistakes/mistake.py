"""What a mistake is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """An edit: of `old`, at its first place behind `behind`, into `new`. `call` and `backward` say which call meets it."""

    name: str
    file: str
    behind: str
    old: str
    new: str
    call: str = "whole"
    backward: bool = False

    @property
    def met_by(self) -> str:
        """The name of the call in `calls.CALLS`."""
        return f"{self.call}, backward" if self.backward else self.call

    def edited(self, text: str) -> str:
        """The text of the file with the mistake in it."""
        start = text.find(self.behind)
        at = text.find(self.old, start + len(self.behind)) if start >= 0 else -1
        if at < 0:
            raise ValueError(f"mistake {self.name!r}: {self.file} has no {self.old!r} behind {self.behind!r}")
        return text[:at] + self.new + text[at + len(self.old) :]
