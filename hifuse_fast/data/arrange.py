"""A download -> a folder of seeded splits with exact counts."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from importlib import resources
from pathlib import Path

from hifuse_fast.data.draws import ORDER, generator
from hifuse_fast.data.examples import SPLITS, Example, write_examples
from hifuse_fast.data.published import DATA_SETS, Item
from hifuse_fast.data.split import together
from hifuse_fast.files import making_folder, writing

Table = list[dict[str, object]]


def arrange(
    name: str,
    source: Path,
    destination: Path,
    *,
    copy: bool = False,
    seed: int = 0,
    by_image: bool = False,
    allow_other_counts: bool = False,
    on_progress: Callable[[int], object] = lambda _: None,
) -> dict[str, Table]:
    """Arrange the download of a data set into `destination`, which appears whole or not at all.

    There are a folder {train,val,test}/CLASS of images, `splits.csv`, and `train.toml` for `hifuse-fast train --config`; of a
    data set with two folds, in a folder fold-1 and fold-2 each. Images of one group, and files of the same bytes, are in the
    same part.

    Args:
        name: a key of `DATA_SETS`.
        source: the folder of the download.
        destination: is made; it must not be there.
        copy: whether files are copied. Else they are links into `source`; what is in an archive is always written.
        seed: of the split.
        by_image: leave out groups: images of one lesion may be in several parts.
        allow_other_counts: take other numbers of images than are published, and the same shares of them.
        on_progress: called with the number of images that are read.

    Returns:
        Of each fold, or of "", a row a class: its number of images in all and in each part, and those that are published.

    Raises:
        ValueError: `destination` is there; the source has another form or other counts; the parts cannot be made of its groups.
        OSError: something is missing in `source`, or `destination` cannot be written.
    """
    data_set = DATA_SETS[name]
    if not source.is_dir():
        raise FileNotFoundError(f"source {source}: no such folder")
    if os.path.lexists(destination):
        raise ValueError(f"dest {destination} is there already: name a new folder")
    items = data_set.read(source, by_image)
    _check_names(items)
    if not allow_other_counts:
        data_set.check(items)
    examples = []
    for done, item in enumerate(items, 1):
        examples.append(Example(item.path, item.label, item.group, digest=hashlib.sha256(item.read()).hexdigest()))
        on_progress(done)
    folds = split_exactly(examples, data_set.test, data_set.val, data_set.folds, seed)
    tables = {}
    with making_folder(destination) as unfinished:
        for number, parts in enumerate(folds, 1):
            fold = f"fold-{number}" if data_set.folds > 1 else ""
            _write(unfinished / fold, items, parts, copy)
            recipe = resources.files("hifuse_fast.data").joinpath("recipes", f"{name}.toml").read_text("utf-8")
            with writing(unfinished / fold / "train.toml") as file:
                file.write(f'data = "splits.csv"\n{recipe}')
            tables[fold] = _table(items, parts, data_set.counts, data_set.test)
    return tables


def split_exactly(examples: Sequence[Example], test: Fraction, val: Fraction, folds: int, seed: int) -> list[list[str]]:
    """The part of each example, one of `SPLITS`, for each fold.

    A part has its share of each class, rounded down, and training the rest. In the second fold the test part is what the first
    one trains and validates on, which takes shares of a half.

    Raises:
        ValueError: sets of examples that belong together leave no way to these numbers.
    """
    numbers = Counter(example.label for example in examples)
    tested = {label: int(n * test) for label, n in numbers.items()}
    first = _fill(examples, {"test": tested}, "rest", seed)
    found = []
    for fold in range(folds):
        learned = [i for i, part in enumerate(first) if part == ("rest" if fold == 0 else "test")]
        validated = {"val": {label: int(n * val) for label, n in numbers.items()}}
        parts = ["test"] * len(examples)
        for i, part in zip(learned, _fill([examples[i] for i in learned], validated, "train", seed), strict=True):
            parts[i] = part
        found.append(parts)
    return found


def _fill(examples: Sequence[Example], wanted: Mapping[str, Mapping[str, int]], rest: str, seed: int) -> list[str]:
    """A part for each example: of each class exactly as many as are wanted, and `rest` has the others.

    Of sets that belong together the larger ones are placed first, in a drawn order, each where most is missing of what it has.
    """
    numbers = Counter(example.label for example in examples)
    left = {part: Counter(of) for part, of in wanted.items()}
    left[rest] = Counter({label: n - sum(of[label] for of in wanted.values()) for label, n in numbers.items()})
    whole = {part: dict(of) for part, of in left.items()}
    sets = together(examples)
    order = generator(seed, ORDER).permutation(len(sets))
    parts = [""] * len(examples)
    for chosen in sorted((sets[i] for i in order), key=len, reverse=True):
        labels = Counter(examples[i].label for i in chosen)
        fitting = [part for part in left if all(left[part][label] >= n for label, n in labels.items())]
        if not fitting:
            first = examples[chosen[0]]
            raise ValueError(
                f"the parts cannot have their exact numbers: {len(chosen)} images that belong together, such as "
                f"{first.path.name} of {first.label}, fit into none"
            )
        best = max(fitting, key=lambda part: sum(n * left[part][label] / whole[part][label] for label, n in labels.items()))
        left[best] -= labels
        for i in chosen:
            parts[i] = best
    return parts


def _check_names(items: Sequence[Item]) -> None:
    """ValueError where two images of a class would have one name."""
    names = Counter((item.label, item.name) for item in items)
    (label, name), count = max(names.items(), key=lambda pair: pair[1])
    if count > 1:
        raise ValueError(f"source has {count} images of class {label} of the name {name}")


def _write(folder: Path, items: Sequence[Item], parts: Sequence[str], copy: bool) -> None:
    rows = []
    for item, part in sorted(
        zip(items, parts, strict=True), key=lambda pair: (SPLITS.index(pair[1]), pair[0].label, pair[0].name)
    ):
        place = Path(part, item.label, item.name)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        if copy or item.member:
            (folder / place).write_bytes(item.read())
        else:
            (folder / place).symlink_to(os.path.abspath(item.path))
        rows.append(Example(place, item.label, item.group, part))
    write_examples(folder / "splits.csv", rows)


def _table(items: Sequence[Item], parts: Sequence[str], published: Mapping[str, int], test: Fraction) -> Table:
    rows: Table = []
    for label in sorted({item.label for item in items}):
        own = Counter(part for item, part in zip(items, parts, strict=True) if item.label == label)
        n = published.get(label, 0)
        rows.append(
            {"class": label, "images": own.total(), "published": n, **{part: own[part] for part in SPLITS},
             "published test": int(n * test)}
        )  # fmt: skip
    numbers = [name for name in rows[0] if name != "class"]
    return [*rows, {"class": "all", **{name: sum(int(str(row[name])) for row in rows) for name in numbers}}]
