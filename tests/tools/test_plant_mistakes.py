"""The mistakes that are planted in the CUDA kernels: each one can be planted still, and is caught."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tools import plant_mistakes
from tools.mistakes import CALLS, MISTAKES, Mistake
from tools.plant_mistakes import BUILD, ROOT, Commands


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_mistake_can_be_planted(mistake: Mistake) -> None:
    text = (ROOT / "csrc/cuda" / mistake.file).read_text()
    assert mistake.edited(text) != text


def test_a_kernel_that_has_changed_is_told() -> None:
    with pytest.raises(ValueError, match=r"mistake 'm': f has no 'b' behind 'c'"):
        Mistake("m", "f", "c", "b", "").edited("b c")
    assert Mistake("m", "f", "c", "b", "x").edited("b c b b") == "b c x b"
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)


def test_a_file_is_met_by_the_sources_that_include_it() -> None:
    met = {name: plant_mistakes.included(ROOT / "csrc/cuda" / name) for name in plant_mistakes.SOURCES}
    forward, backward = "window_attention_forward_bf16.cu", "window_attention_backward_bf16.cu"
    assert {name for name in met if "window_attention_sums.cuh" in met[name]} == {backward}
    assert {name for name in met if "window_attention_forward.cuh" in met[name]} == {forward}
    assert {forward, backward, "product_bf16.cu", "local_block.cu"} <= {name for name in met if "tiles.cuh" in met[name]}
    for mistake in MISTAKES:
        assert any(mistake.file in met[source] for source in CALLS[mistake.met_by].sources), mistake.name


def test_verdicts() -> None:
    right = {"late": ["bits", "a"], "early": ["bits", "a"]}
    assert not plant_mistakes.judge(right, right).caught
    verdict = plant_mistakes.judge({"late": ["error", "race"], "early": ["bits", "b"]}, right)
    assert (verdict.told, verdict.wrong, verdict.message, verdict.caught) == (1, 1, "race", True)


def test_a_folder_without_the_library_is_told(tmp_path: Path) -> None:
    (tmp_path / "compile_commands.json").write_text("[]")
    with pytest.raises(FileNotFoundError, match="has no emulated library"):
        Commands.of(tmp_path)


def test_a_precompiled_header_is_no_part_of_the_library(tmp_path: Path) -> None:
    folder = "csrc/tests/emulation/CMakeFiles/emulated_kernels.dir"
    entries = []
    for name in ("x.cu.o", "cmake_pch.hxx.gch"):
        entries.append({"output": f"{folder}/{name}", "file": name, "command": f"c++ -g1 -o {folder}/{name} -c {name}"})
    (tmp_path / folder).mkdir(parents=True)
    for made in (*(entry["output"] for entry in entries), "csrc/tests/emulation/libhifuse_emulation.a"):
        (tmp_path / made).touch()
    (tmp_path / "compile_commands.json").write_text(json.dumps(entries))
    assert Commands.of(tmp_path).objects == [tmp_path / folder / "x.cu.o"]


@pytest.fixture(scope="module")
def commands() -> Commands:
    """Those of `make test`."""
    try:
        return Commands.of(BUILD)
    except FileNotFoundError as error:
        pytest.skip(f"the emulated kernels are not built: {error}")


@pytest.fixture(scope="module")
def shipped(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library without a mistake."""
    return plant_mistakes.plant(None, tmp_path_factory.mktemp("shipped") / "build", commands)


@pytest.fixture(scope="module")
def right(shipped: Path) -> plant_mistakes.Right:
    """What the shipped kernels do, which is right in all runs."""
    return functools.cache(functools.partial(plant_mistakes.observe_right, shipped))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_each_mistake_is_caught(
    mistake: Mistake, commands: Commands, shipped: Path, right: plant_mistakes.Right, tmp_path: Path
) -> None:
    library = plant_mistakes.plant(mistake, tmp_path / "build", commands, shipped.parent)
    assert plant_mistakes.judge(plant_mistakes.observe(library, mistake.met_by), right(mistake.met_by)).caught
