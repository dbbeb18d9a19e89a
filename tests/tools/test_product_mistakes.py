"""The mistakes that are planted in the kernels of products: each one can be planted still, and is caught."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tools import product_mistakes
from tools.plant_mistakes import BUILD, ROOT, Commands, Mistake, judge
from tools.product_mistakes import MISTAKES

Right = Callable[[str], dict[str, list[str]]]
each_mistake = pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)


@each_mistake
def test_each_mistake_can_be_planted(mistake: Mistake) -> None:
    text = (ROOT / "csrc/cuda" / mistake.file).read_text()
    assert mistake.edited(text) != text


@pytest.fixture(scope="module")
def commands() -> Commands:
    """Those of `make test`."""
    try:
        return Commands.of(BUILD)
    except FileNotFoundError as error:
        pytest.skip(f"the emulated kernels are not built: {error}")


@pytest.fixture(scope="module")
def right(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Right:
    """What the shipped kernels do, which is right in all runs."""
    library = product_mistakes.plant(None, tmp_path_factory.mktemp("shipped") / "build", commands)
    return functools.cache(functools.partial(product_mistakes.observe_right, library))


@pytest.mark.slow
@each_mistake
def test_each_mistake_is_caught(mistake: Mistake, commands: Commands, right: Right, tmp_path: Path) -> None:
    library = product_mistakes.plant(mistake, tmp_path / "build", commands)
    assert judge(product_mistakes.observe(library, mistake.call), right(mistake.call)).caught
