"""What a run of the demo came to: a file, and the page that is made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.demo.compare import Comparison, Estimate
from benchmarks.saved import Saved
from hifuse_fast.bench import table

PLAINLY = "The images are outlines that readers drew, not scans: this proves the pipeline, not clinical value."


@dataclass(frozen=True)
class Result(Saved):
    """The comparison on the test split, and what it was made with."""

    counts: dict[str, list[int]]  #: of each split: readings, and patients
    parameters: int
    image_size: int
    epochs: int
    training_s: float | None  #: None where the training was there already
    comparison: Comparison
    resamples: int
    frozen_error: float  #: largest difference of a probability between the frozen network and the definition

    @classmethod
    def found(cls, values: dict[str, Any]) -> dict[str, Any]:
        parts = {part: {name: Estimate(**each) for name, each in of.items()} for part, of in values["comparison"].items()}
        return {**values, "comparison": Comparison(**parts)}

    def page(self) -> str:
        """The tables of the page, and the conditions."""
        first, *bars = self.comparison.auroc
        head = ["on the test patients", "AUROC (95 %)", f"{first} less this (95 %)"]
        rows = [
            [name, str(each), str(self.comparison.difference.get(name, "-"))] for name, each in self.comparison.auroc.items()
        ]
        return f"{table.markdown(head, rows)}\n\n{self._verdict(bars[0])}\n\n{self._conditions()}\n"

    def _verdict(self, bar: str) -> str:
        low = self.comparison.difference[bar].low
        return f"The interval of the difference to the {bar} {'lies' if low > 0 else 'does not lie'} above 0."

    def _conditions(self) -> str:
        counts = ", ".join(f"{name} {n} readings of {patients} patients" for name, (n, patients) in self.counts.items())
        took = "was there already" if self.training_s is None else f"took {self.training_s / 60:.1f} minutes"
        c = self.conditions
        return (
            f"Split by patient: {counts}. A network of {self.parameters / 1e6:.1f} million parameters, on {self.image_size} x "
            f"{self.image_size} pixels; its training of {self.epochs} epochs {took}. Intervals: {self.resamples} resamples of "
            f"the patients. Probabilities of the frozen network are within {self.frozen_error:.0e} of the definition's. "
            f"{c.device}, {c.threads} threads, {c.isa}; hifuse_fast {c.package}, torch {c.torch}; {c.commit}, {c.date[:10]}."
        )
