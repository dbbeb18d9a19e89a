"""Who may import whom (docs/architecture.md), read from the source."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import sys
from pathlib import Path

import pytest

import hifuse_fast
from hifuse_fast.backends.select import BACKENDS
from tests.support.paths import ROOT
from tests.support.processes import python

PACKAGE = ROOT / "hifuse_fast"

# Who may import whom within the package, anywhere in a file. A pattern on the left stands for files; a name on the right for a
# module and what is below it. The order is from the bottom up: nothing may name what stands further down, but for itself.
BOTTOM = ["checks", "files", "_version"]
OPS = [*BOTTOM, "backends", "ops"]
LAYERS = [*OPS, "layers"]
BLOCKS = [*LAYERS, "blocks"]
MODEL = [*BLOCKS, "options", "recompute", "model"]
CHECKPOINTS = [*MODEL, "checkpoints"]
EDITS = [*CHECKPOINTS, "edits"]
INFERENCE = [*EDITS, "inference"]
PUBLIC = [*INFERENCE, "data", "export", "testing"]
LAW = {
    "checks.py": [],
    "files.py": ["checks"],
    "testing.py": [],
    "data/*.py": ["checks", "files", "data"],
    # The run time of kernels, bottom up: the compiled library and the tables, what launches Triton, the choice.
    "backends/flops.py": [],
    "backends/tracing.py": [],
    "backends/tape.py": [],
    "backends/native/*.py": ["checks", "_C", "backends.native", "backends.flops"],
    "backends/tables.py": ["checks"],
    "backends/choices.py": ["checks", "backends.tables"],
    "backends/record.py": ["backends.tables"],
    "backends/triton/*.py": ["checks", "backends.tables", "backends.record", "backends.triton"],
    "backends/cuda/*.py": [
        "checks",
        "_cuda",
        "backends.tables",
        "backends.tape",
        "backends.record",
        "backends.tracing",
        "backends.cuda",
    ],
    "backends/transforms.py": ["backends.tracing"],
    "backends/select.py": [
        "checks",
        "backends.choices",
        "backends.tables",
        "backends.native",
        "backends.cuda.library",
        "backends.tracing",
        "backends.transforms",
    ],
    "backends/info.py": ["_version", "backends.native", "backends.cuda.library", "backends.select"],
    # An op. Kernels of one backend know nothing of another one, nor of the definition.
    "ops/functions/fused.py": ["backends.flops", "backends.select", "backends.transforms"],
    "ops/functions/*/api.py": [
        "checks",
        "backends.select",
        "backends.transforms",
        "ops.functions.fused",
        "ops.functions.*.reference",
    ],
    "ops/functions/padding.py": [],
    "ops/functions/layout.py": [],
    "ops/functions/*/reference.py": [
        "backends.transforms",
        "ops.functions.convolution",
        "ops.functions.layout",
        "ops.functions.padding",
        "ops.functions.*.reference",
    ],
    "ops/functions/*/limits.py": [],  # what the kernels of an op serve, whatever their language
    "ops/functions/*/composed.py": [],  # what triton.py and cuda.py of an op share
    "ops/functions/*/native.py": ["backends.native", "ops.functions.layout", "ops.functions.*.limits"],
    "ops/functions/*/triton*.py": [
        "backends.triton",
        "backends.tables",
        "ops.functions.*.limits",
        "ops.functions.*.triton*",
        "ops.functions.*.composed",
    ],
    "ops/functions/*/cuda.py": [
        "backends.cuda",
        "backends.tables",
        "ops.functions.padding",
        "ops.functions.*.limits",
        "ops.functions.*.cuda",
        "ops.functions.*.composed",
    ],
    "ops/prepared/base.py": ["checks", "backends.transforms"],
    "ops/prepared/parts.py": ["ops.prepared.base"],  # of modules that one launch may stand for
    "ops/prepared/together.py": [],
    "ops/prepared/int8.py": [],  # how values are rounded: part of the contract, and of two definitions
    "ops/prepared/*/api.py": ["checks", "backends.select", "ops.prepared.base", "ops.prepared.int8", "ops.functions.*.api"],
    "ops/prepared/*/bounds.py": ["testing"],  # for tests alone
    "ops/prepared/*/reference.py": [
        "ops.functions.*.reference",
        "ops.prepared.base",
        "ops.prepared.int8",
        "ops.prepared.parts",
        "ops.prepared.together",
    ],
    "ops/prepared/*/launched.py": ["ops.prepared.base"],  # what triton.py and cuda.py of an op share
    "ops/prepared/*/native.py": [
        "backends.native",
        "backends.tape",
        "ops.functions.*.native",
        "ops.prepared.base",
        "ops.prepared.int8",
    ],
    "ops/prepared/*/triton.py": [
        "backends.triton",
        "backends.tables",
        "ops.functions.*.triton*",
        "ops.prepared.*.triton",
        "ops.prepared.*.launched",
        "ops.prepared.base",
    ],
    "ops/prepared/*/cuda.py": [
        "backends.cuda",
        "backends.tables",
        "backends.tape",
        "ops.functions.*.cuda",
        "ops.prepared.*.launched",
        "ops.prepared.base",
    ],
    # The network, each on what is above it here.
    "layers.py": OPS,
    "blocks.py": LAYERS,
    "options.py": BLOCKS,
    "recompute.py": ["backends.select"],
    "model.py": [*BLOCKS, "options", "recompute"],
    "checkpoints/*.py": CHECKPOINTS,
    "edits.py": CHECKPOINTS,
    "inference/*.py": INFERENCE,
    "export/*.py": [*EDITS, "data", "export"],
    # The application, and tools over the ops, which nothing in the package imports.
    "bench/*.py": [*PUBLIC, "bench", "PUBLIC API"],
    "app/*.py": [*PUBLIC, "bench", "app", "PUBLIC API"],
    "app/training/*.py": [*PUBLIC, "app.console", "app.share", "app.training", "PUBLIC API"],
    "commands/*.py": [*PUBLIC, "bench", "app", "commands.options", "PUBLIC API"],
    "cli.py": ["app.console", "commands", "PUBLIC API"],
    "tuning/*.py": [*INFERENCE, "testing", "bench.table", "tuning"],
}
# The hard dependencies, and who else may use them; everything else from outside is optional and stays inside functions.
EVERYWHERE = {"torch", "numpy", "safetensors"}
APPLICATION = {
    "cli.py": {"click"},
    "app": {"click", "rich", "PIL"},
    "commands": {"click", "rich", "PIL"},
    "data": {"PIL"},
    "bench": {"click", "rich", "PIL"},
    "tuning": {"click", "rich"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports, `from a import b` as a.b."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.If))
        and (isinstance(node, ast.FunctionDef) or ast.unparse(node.test) == "TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if top_level_only and id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def allowed_by(rules: list[str]) -> re.Pattern[str]:
    """What matches the names that the rules allow."""
    public = "|".join(["__version__", *hifuse_fast.__all__])
    each = [rf"\.({public})" if rule == "PUBLIC API" else re.escape(f".{rule}").replace(r"\*", r"\w*") for rule in rules]
    return re.compile(rf"hifuse_fast({'|'.join(each) or '!'})(\.|$)")


@pytest.mark.parametrize("pattern", LAW)
def test_modules_import_only_what_the_law_allows(pattern: str) -> None:
    allowed = allowed_by(LAW[pattern])
    for path in sorted(PACKAGE.glob(pattern)):
        for name in imports(path) - {"hifuse_fast"}:
            if name.startswith("hifuse_fast"):
                assert allowed.match(name), f"{path.relative_to(ROOT)} imports {name}"


def test_the_law_covers_every_file() -> None:
    covered = {path for pattern in LAW for path in PACKAGE.glob(pattern)}
    others = {path for path in set(sources()) - covered if path.name not in ("__init__.py", "_version.py")}
    assert not others
    assert not [pattern for pattern in LAW if not list(PACKAGE.glob(pattern))], "a rule for files that are not there"


@pytest.mark.parametrize("kind", ["functions", "prepared"])
def test_every_op_has_its_files_and_no_others(kind: str) -> None:
    files = {"__init__", "api", "reference", *BACKENDS[2:], "triton_kernels", "triton_maps"}
    files |= {"bounds", "composed", "launched", "limits"}
    for folder in (PACKAGE / "ops" / kind).iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert {path.stem for path in folder.glob("*.py")} <= files
            assert (folder / "api.py").exists()
            assert (folder / "reference.py").exists()


def test_nothing_imports_the_tools() -> None:
    for path in sources():
        if path.relative_to(PACKAGE).parts[0] != "tuning":
            assert not [name for name in imports(path) if re.match(r"(hifuse_fast\.tuning|benchmarks|tools|tests)\b", name)], (
                path
            )


def test_imports_have_no_circles() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sources()}
    arrows = {}
    for module, path in modules.items():
        named = {name if name in modules else name.rpartition(".")[0] for name in imports(path, top_level_only=True)}
        arrows[module] = {name for name in named if name in modules and not f"{module}.".startswith(f"{name}.")}
    graphlib.TopologicalSorter(arrows).prepare()  # raises for a circle, and names it


def test_outside_packages_at_the_top_of_a_file() -> None:
    standard = sys.stdlib_module_names
    for path in sources():
        place = path.relative_to(PACKAGE).parts[0]
        triton = {"triton"} if path.name.startswith("triton") or path.parent.name == "triton" or place == "tuning" else set()
        allowed = EVERYWHERE | APPLICATION.get(place, set()) | triton | {"hifuse_fast"}
        outside = {name.split(".")[0] for name in imports(path, top_level_only=True)} - set(standard) - allowed
        assert not outside, f"{path.relative_to(ROOT)} imports {outside} at its top"


def test_kernels_know_no_torch_and_no_python() -> None:
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    files = [p for p in sources if "bindings" not in (*p.parent.parts, p.stem)]
    assert files
    for path in files:
        includes = re.findall(r"#include [<\"]([^>\"]+)", path.read_text())
        assert not [name for name in includes if re.match(r"(torch|ATen|c10|pybind11|Python)", name)], path


def test_only_the_ptx_files_have_inline_ptx() -> None:
    for path in (ROOT / "csrc" / "cuda").rglob("*"):
        assert path.name in ("ptx.cuh", "ptx_hopper.cuh") or not re.search(r"\basm\s*(volatile)?\s*\(", path.read_text()), path


def test_kernels_read_the_same_for_the_gpu_and_for_the_emulation() -> None:
    """No branch of the preprocessor in a kernel's file: what was tested is what runs."""
    for path in (ROOT / "csrc" / "cuda").rglob("*.cu*"):
        branches = re.findall(r"^\s*#\s*(?:if|ifdef|ifndef|elif)\b.*", path.read_text(), re.MULTILINE)
        if path.name == "ptx.cuh":  # which the emulation does not read: an instruction may be of a later architecture
            branches = [line for line in branches if not re.fullmatch(r"#if __CUDA_ARCH__ >= \d+", line)]
        assert not branches, path


def test_importing_the_package_is_light() -> None:
    """No optional or application package is loaded by `import hifuse_fast`, nor what makes torch take a second more."""
    code = "import sys, hifuse_fast; print(*sorted(sys.modules))"
    loaded = set(python(code).split())
    heavy = {
        "click",
        "rich",
        "PIL",
        "tifffile",
        "pydicom",
        "matplotlib",
        "skimage",
        "torchvision",
        "timm",
        "sklearn",
        "triton",
        "torch._dynamo",
        "onnx",
    }
    assert not heavy & loaded
