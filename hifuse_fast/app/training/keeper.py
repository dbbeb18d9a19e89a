"""What a run writes as it goes on."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch

import hifuse_fast
from hifuse_fast import save_checkpoint
from hifuse_fast.app.training.folder import RunFolder, TensorBoard
from hifuse_fast.app.training.loop import Training
from hifuse_fast.app.training.state import Progress, write_state

Note = Callable[[str], object]
_SAID = {"loss": "val_loss", "accuracy": "val_accuracy", "balanced accuracy": "val_balanced_accuracy", "AUROC": "val_auroc"}


class Keeper:
    """Writes the files of a run, where this process is the one that does."""

    def __init__(self, folder: RunFolder, training: Training, note: Note) -> None:
        self.folder, self.note, self.writes = folder, note, training.ranks.is_first
        self.facts = {
            "configuration": training.configuration.to_dict(),
            "options": training.network.options.to_dict(),
            "classes": training.data.classes,
            "data": training.data.hash,
            "versions": versions(),
            "threads": torch.get_num_threads(),
            "world": training.ranks.world,
        }
        done = training.progress
        self.board = TensorBoard(folder.tensorboard, done.epoch) if training.configuration.tensorboard and self.writes else None
        if self.writes:
            folder.write_log(done.rows)
        if done.step:
            note(f"{folder.path} goes on after step {done.step}, in epoch {done.epoch + 1} of {training.configuration.epochs}.")

    def save(self, training: Training) -> None:
        if self.writes:
            save_checkpoint(training.shown, self.folder.last, self.record(training))
            write_state(self.folder.state, training.state(self.facts))

    def end_epoch(self, training: Training, row: Mapping[str, Any]) -> None:
        if not self.writes:
            return
        if row["best"]:  # before the state: where it is lost, the same epoch comes to the same network again
            save_checkpoint(training.shown, self.folder.best, self.record(training))
        self.save(training)
        self.folder.write_log(training.progress.rows)
        if self.board is not None:
            self.board.add(row)
        train = f"loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.4f}"
        val = ", ".join(f"{name} {row[key]:.4f}" for name, key in _SAID.items())
        best = " (best)" if row["best"] else ""
        self.note(f"epoch {row['epoch']}/{training.configuration.epochs}: {train}; validation: {val}{best}")

    def record(self, training: Training) -> dict[str, Any]:
        """What a checkpoint says of its network besides its options."""
        configuration, rows = training.configuration, training.progress.rows
        return {
            "classes": self.facts["classes"],
            "images": {
                "preprocess": asdict(configuration.preprocess()),
                "bits": configuration.bits,
                "exif_orientation": configuration.exif_orientation,
                "greyscale": training.network.in_chans == 1,
                "window": configuration.reading().window,
            },
            **{name: self.facts[name] for name in ("configuration", "versions", "data")},
            "epoch": training.progress.epoch,
            "step": training.progress.step,
            "metrics": rows[-1] if rows else {},
        }

    def close(self, training: Training) -> None:
        """Say how it went."""
        share = training.waited_s / training.ran_s if training.ran_s else 0.0
        waiting = f"{share:.1%} of the time was spent waiting for images"
        self.note(f"{self.folder.path} is finished{best_of(training.progress)}; {waiting}.")


def best_of(progress: Progress) -> str:
    """The best score, for the end of a sentence."""
    return (
        "" if progress.best is None else f"; the best validation score is {progress.best:.4f}, of epoch {progress.best_epoch}"
    )


def versions() -> dict[str, str]:
    """What the bits of a run depend on."""
    return {
        "hifuse_fast": hifuse_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
    }
