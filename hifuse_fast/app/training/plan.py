"""What is checked before a run begins or goes on, and the first files of its folder."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hifuse_fast.app.console import progress
from hifuse_fast.app.training.configuration import HARMLESS, Configuration, differences, merge, read_toml, write_toml
from hifuse_fast.app.training.feed import Data
from hifuse_fast.app.training.folder import RunFolder
from hifuse_fast.app.training.keeper import best_of, versions
from hifuse_fast.app.training.network import make_network
from hifuse_fast.app.training.ranks import Ranks
from hifuse_fast.app.training.state import State, read_state
from hifuse_fast.data.check import check_examples, digest_examples, hash_examples
from hifuse_fast.data.draws import batches_of
from hifuse_fast.data.examples import Example, classes_of, read_examples, write_examples
from hifuse_fast.data.listing import check_outside
from hifuse_fast.data.split import split_examples
from hifuse_fast.model import STRIDE

Note = Callable[[str], object]
_PACKAGES = {"sklearn": "scikit-learn", "matplotlib": "matplotlib"}


@dataclass(frozen=True)
class Plan:
    """What every process of a run is told by the first."""

    configuration: Configuration
    data: Data | None  #: None where nothing is left to do
    stored: State | None  #: where the run stands, without its tensors


def make_plan(
    folder: RunFolder, settings: Mapping[str, Any], toml: Path | None, resume: bool, override: bool, ranks: Ranks,
    stack: contextlib.ExitStack, find_device: Callable[[str], torch.device], note: Note,
) -> Plan:  # fmt: skip
    """All checks, and the first files of a new run; the folder stays locked until `stack` is closed."""
    folder.check(resume=resume)
    resume = resume and folder.begun  # else it begins
    if resume:
        stack.enter_context(folder.locked())
    stored = read_state(folder.state, tensors=False) if resume and folder.state.exists() else None
    configuration = _configure(folder, settings, toml, stored, resume, override)
    _check_packages(configuration)
    device = find_device(configuration.device)
    if configuration.sync_batch_norm and device.type != "cuda":
        raise ValueError(f"sync_batch_norm is for GPUs: PyTorch has none for the device {device}")
    if stored is not None:
        _check_machine(stored, ranks, override, note)
        if stored.progress.epoch >= configuration.epochs:
            folder.write_log(stored.progress.rows)
            note(f"{folder.path} is finished: {stored.progress.epoch} epochs{best_of(stored.progress)}.")
            return Plan(configuration, None, None)
    _check_place(folder, Path(configuration.data))
    examples = read_examples(Path(configuration.data), configuration.group_by, note)
    classes = classes_of(examples)
    if stored is None:
        make_network(configuration, classes, None, lambda _: None)
    examples = _check(configuration, examples, note)
    data = Data(
        [e for e in examples if e.split == "train"], [e for e in examples if e.split == "val"], classes, hash_examples(examples)
    )
    if stored is not None and stored.facts["data"] != data.hash:
        raise ValueError(
            f"output {folder.path} cannot be resumed: the images of {configuration.data} are not those that it began with"
        )
    _check_parts(configuration, len(data.train), ranks)
    if configuration.best == "auroc" and len({example.label for example in data.val}) < 2:
        raise ValueError(
            "best must be accuracy or balanced_accuracy where all images of validation are of one class, got 'auroc'"
        )
    if not resume:
        stack.enter_context(folder.locked())
        folder.check(resume=False)
    write_examples(folder.splits, examples)
    write_toml(folder.configuration, configuration)
    return Plan(configuration, data, stored)


def _configure(
    folder: RunFolder, settings: Mapping[str, Any], toml: Path | None, stored: State | None, resume: bool, override: bool
) -> Configuration:
    asked = merge(read_toml(toml) if toml else {}, settings)
    if not resume:
        configuration = Configuration.from_dict(asked)
        if not configuration.data:
            raise ValueError("DATA must be given: the folder or the CSV file of the images")
        return configuration
    written = read_toml(folder.configuration) if folder.configuration.exists() else {}
    try:
        before = Configuration.from_dict(stored.facts["configuration"] if stored is not None else written)
    except (TypeError, ValueError) as error:  # what is written in the file was checked when it was read
        raise ValueError(f"state {folder.state} is damaged, or no state of a training: {error}") from None
    now = Configuration.from_dict(merge(before.to_dict(), written, asked))
    changed = differences(before, now)
    grave = [text for name, text in changed.items() if not (override and name in HARMLESS)]
    if grave:
        advice = f"; --override lets {', '.join(HARMLESS)} change" if set(changed) & set(HARMLESS) and not override else ""
        raise ValueError(f"output {folder.path} cannot be resumed with another configuration: {'; '.join(grave)}{advice}")
    return now


def _check_place(folder: RunFolder, data: Path) -> None:
    """Raise ValueError where the files of a run would be taken for images, or the first of them would replace the data."""
    check_outside("output", folder.path, [data])
    if data.exists() and folder.splits.exists() and folder.splits.samefile(data) and not folder.configuration.exists():
        raise ValueError(
            f"output {folder.path} would get another {folder.splits.name} in place of the data: name another folder"
        )


def _check_packages(configuration: Configuration) -> None:
    needed = {**_PACKAGES, **({"tensorboard": "tensorboard"} if configuration.tensorboard else {})}
    missing = [package for module, package in needed.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"training needs {' and '.join(missing)}: pip install 'hifuse_fast[train]'")


def _check_machine(stored: State, ranks: Ranks, override: bool, note: Note) -> None:
    """Say what makes other bits of a resumed run than of one that was not interrupted."""
    if stored.facts["world"] != ranks.world and not override:
        raise ValueError(
            f"the run was begun by {stored.facts['world']} processes and would go on with {ranks.world}, which have other "
            "parts of a batch; --override lets them"
        )
    now = {**versions(), "threads": torch.get_num_threads()}
    before = {**stored.facts["versions"], "threads": stored.facts["threads"]}
    changed = [f"{name} {before.get(name)} -> {value}" for name, value in now.items() if before.get(name) != value]
    if changed:
        note(f"The bits may differ from those of a run without a break, for this has changed: {', '.join(changed)}.")


def _check_parts(configuration: Configuration, count: int, ranks: Ranks) -> None:
    """Raise ValueError where a batch cannot be cut, or batch norm would see one value alone."""
    parts = ranks.world * configuration.accumulate
    batches = batches_of(np.arange(count), configuration.batch_size, parts)
    smallest = min(len(batch) // parts for batch in batches)
    if configuration.image_size <= STRIDE and smallest < 2 and not configuration.freeze:
        raise ValueError(
            f"batch_size {configuration.batch_size} leaves a part of one image, whose last map is one pixel at image_size "
            f"{configuration.image_size}, and batch norm needs two values; take another batch_size"
        )


def _check(configuration: Configuration, examples: list[Example], note: Note) -> list[Example]:
    """The examples with splits and digests, of which everything was checked that can be."""
    with progress(len(examples), shown=True) as on_progress:
        examples = digest_examples(examples, configuration.reading(), configuration.workers, on_progress)
    given = {example.split for example in examples}
    if "" in given:
        examples = split_examples(examples, configuration.val_share, configuration.test_share, configuration.seed)
    elif "val" not in given:
        own = iter(
            split_examples([e for e in examples if e.split == "train"], configuration.val_share, 0.0, configuration.seed)
        )
        examples = [next(own) if example.split == "train" else example for example in examples]
    for text in check_examples(examples, allow_duplicates=configuration.allow_duplicates):
        note(text)
    counts = {split: sum(example.split == split for example in examples) for split in ("train", "val", "test")}
    note(f"{len(classes_of(examples))} classes; images: {', '.join(f'{n} {split}' for split, n in counts.items() if n)}.")
    return examples
