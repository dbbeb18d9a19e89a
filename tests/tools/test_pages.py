"""The pages are true: links lead somewhere, files and commands exist, tables are whole, and numbers come from the rows."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import hifuse_fast
from hifuse_fast.cli import main as cli
from tools import pages

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
GENERATED = re.compile(r"<!-- results:\S+ -->.*?<!-- /results -->", re.DOTALL)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOP = ("benchmarks", "csrc", "docs", "hifuse_fast", "tests", "tools")  #: folders that a path in a page begins with

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(language: str) -> list[tuple[str, str]]:
    """The page's name and the text of every block of code in `language`."""
    found = [(page.name, *fence) for page in PAGES for fence in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [(name, text) for name, kind, text in found if kind == language]


def whole_commands() -> list[str]:
    """The lines of all blocks of shell, without their comments."""
    return [line.split("  #")[0].strip() for _, text in blocks("bash") for line in text.splitlines()]


def commands(program: str) -> list[str]:
    """The command lines of all pages that begin with `program`; of those that a sentence names, maybe not the whole one."""
    inline = [text for page in PAGES for text in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))]
    return sorted(
        {line for line in [*whole_commands(), *inline] if line.split(" ")[0] == program and " " in line and "|" not in line}
    )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_there_is_a_page_for_each_question() -> None:
    names = "architecture kernels predict inference results measuring ladder install reproduce export train evaluate demo c"
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} == set(names.split())
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 130


@each_page
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(path), f"{target}: no such heading"


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    text = GENERATED.sub("", page.read_text(encoding="utf-8"))
    for path in re.findall(r"`([\w./]+/[\w./]*)`", text):
        if path.split("/")[0] in TOP and not path.startswith(
            ("benchmarks/results/", "csrc/cuda", "hifuse_fast/_C", "hifuse_fast/_cuda")
        ):
            assert (ROOT / path).exists(), f"{page.name} names {path}, which is not there"


@each_page
def test_tables_are_whole(page: Path) -> None:
    """No line of a table is cut off from its head, and each has as many cells as the head."""
    columns = 0
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("|"):
            columns = 0
            continue
        cells = line.count("|") - line.count("`a|") - 1
        if not columns:
            assert lines[number].startswith("| ---"), f"{page.name}, line {number}: a table without a head"
            columns = cells
        assert cells == columns, f"{page.name}, line {number}: {cells} cells, the head has {columns}"


def test_entries_of_the_ladder_are_short() -> None:
    for line in (ROOT / "docs/ladder.md").read_text(encoding="utf-8").splitlines():
        assert not line.startswith("|") or len(line) < 400, line


def test_tables_come_from_the_rows() -> None:
    """Of the commit: whoever measures writes rows first, and the pages when the rows are to be kept."""
    pytest.importorskip("triton")  # of the table of what autograd keeps
    changed = subprocess.run(["git", "status", "--porcelain", "--", pages.RESULTS], cwd=ROOT, capture_output=True, check=False)
    if changed.stdout:
        pytest.skip("there are rows that are not committed")
    found = CliRunner().invoke(pages.main, ["--check", "--root", str(ROOT)])
    assert found.exit_code == 0, found.output


def test_every_block_stands_on_a_page() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in pages.PAGES)
    assert set(re.findall(r"^<!-- results:(\S+) -->$", text, re.MULTILINE)) == set(pages.BLOCKS)


def test_the_readme_names_no_engine_that_was_given_our_own_graph() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    assert "openvino" not in readme
    assert "onnx" not in readme


@pytest.mark.parametrize("command", commands("make"))
def test_make_targets_exist(command: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE)) | set(re.findall(r"\$\(([A-Z_]+)\)", makefile))
    for word in shlex.split(command)[1:]:
        name, is_variable, _ = word.partition("=")
        assert name in (variables if is_variable else targets), f"{command}: no {name} in the Makefile"


def test_make_help_is_true() -> None:
    """What the head of the Makefile lists is there, and every target for users is listed."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    listed = set(re.findall(r"\bmake ([a-z-]+)", makefile.split("\nPYTHON ?=")[0]))
    phony = set(re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split())
    assert listed <= phony
    assert phony - listed <= {"help", "setup"}


def options(command: click.Command) -> set[str]:
    """The names of its options."""
    return {"--help"} | {name for found in command.params if isinstance(found, click.Option) for name in found.opts}


def test_options_of_predict_that_its_page_names_exist() -> None:
    text = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= options(cli.commands["predict"])


@pytest.mark.parametrize("command", [line for line in commands("hifuse-fast") if not line.endswith("...")])
def test_command_lines_are_understood(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    found = cli.commands[name]
    assert {word for word in arguments if word.startswith("--")} <= options(found)
    if command in whole_commands():
        found.make_context(name, list(arguments)).close()


@pytest.mark.parametrize("command", commands("python"))
def test_modules_that_are_run_exist(command: str) -> None:
    found = re.match(r"python -m ([\w.]+)(.*)", command)
    assert found is not None, command
    assert importlib.util.find_spec(found[1]) is not None


@pytest.mark.parametrize(("page", "code"), blocks("python"))
def test_code_is_python_and_its_names_exist(page: str, code: str) -> None:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hifuse_fast":
            assert hasattr(hifuse_fast, node.attr), f"{page}: hifuse_fast.{node.attr}"
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.util.find_spec(node.module)
            assert module is not None, f"{page}: {node.module}"
            source = Path(module.origin or "").read_text(encoding="utf-8")
            assert all(re.search(rf"^(def|class) {alias.name}\b", source, re.MULTILINE) for alias in node.names), page


def test_the_rooms_of_the_package_are_on_the_map() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = text.split("## Rooms")[1].split("## Who")[0]
    package = ROOT / "hifuse_fast"
    names = {path.stem for path in package.glob("*.py")} - {"__init__", "_version"}
    names |= {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert not [name for name in names if not re.search(rf"^ +{name}[/ ]", rooms, re.MULTILINE)]
