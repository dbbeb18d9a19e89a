"""The folder of a run: its files, who may write them, and what is written."""

from __future__ import annotations

import contextlib
import csv
import fcntl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hifuse_fast.files import is_unfinished, replacing, writing

COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_accuracy",
    "val_loss", "val_accuracy", "val_balanced_accuracy", "val_auroc", "best",
)  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """The files of a run."""

    path: Path

    @property
    def configuration(self) -> Path:
        return self.path / "config.toml"

    @property
    def splits(self) -> Path:
        return self.path / "splits.csv"

    @property
    def last(self) -> Path:
        return self.path / "last.safetensors"

    @property
    def best(self) -> Path:
        return self.path / "best.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "state" / "state.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def begun(self) -> bool:
        """Whether there is a run."""
        return self.configuration.exists() or self.state.exists()

    def check(self, *, resume: bool) -> None:
        """Raise ValueError or FileNotFoundError where there is a run that is not to be resumed, or none that is."""
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"output {self.path} exists and is no folder")
        if not resume and self.begun:
            raise ValueError(f"output {self.path} holds a run: --resume continues it; or name another folder")
        if resume and not self.path.is_dir():
            raise FileNotFoundError(f"output {self.path} cannot be resumed: no such folder")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """In this block no other process writes here; what one that was killed left unfinished is taken away.

        Raises:
            ValueError: another process does.
            OSError: the folder cannot be made.
        """
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with (self.state.parent / "lock").open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which workers do not inherit, and a kill undoes
            except BlockingIOError:
                raise ValueError(f"output {self.path} is being written by another process") from None
            for folder in (self.path, self.state.parent):
                for path in folder.iterdir():
                    if is_unfinished(path):
                        path.unlink()
            yield

    def write_log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write log.csv and curves.png, of all epochs."""
        with writing(self.log) as file:
            table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        if rows:
            with replacing(self.curves) as unfinished:
                _plot(unfinished, rows)


def _plot(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4))
    losses, scores = figure.subplots(1, 2, gridspec_kw={"left": 0.07, "right": 0.98, "bottom": 0.13, "top": 0.96})
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) == 1 else ""
    for name in COLUMNS[3:-1]:
        axes = losses if name.endswith("loss") else scores
        axes.plot(epochs, [row[name] for row in rows], marker=marker, label=name.replace("_", " "))
    best = [row for row in rows if row["best"]]
    if best:
        scores.axvline(best[-1]["epoch"], color="grey", linestyle=":", label="best")
    for axes, name in ((losses, "loss"), (scores, "score")):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=100)


class TensorBoard:
    """The rows of the log for TensorBoard."""

    def __init__(self, path: Path, epoch: int) -> None:
        """Rows of later epochs than `epoch`, which another process wrote before it was killed, count no more."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(path), purge_step=epoch + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """A row, at its epoch."""
        for name in COLUMNS[2:-1]:
            self._writer.add_scalar(name, row[name], row["epoch"])
        self._writer.flush()
