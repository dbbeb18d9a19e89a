"""Who may import whom (docs/architecture.md), read from the source."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hifuse_fast"

# What a module of the package may import of the package, anywhere in the file. A name stands for what is below it too.
LAW = {
    "ops/*/reference.py": ["ops.prepared", "ops.*.reference"],
    "ops/*/native.py": ["_native", "ops.prepared", "ops.packing", "ops.tape"],
    "ops/*/triton.py": ["ops.prepared", "ops.*.triton", "ops.*.triton_kernels", "gpu"],
    "ops/*/triton_kernels.py": ["ops.*.triton_maps", "gpu"],
    "ops/*/triton_maps.py": ["gpu"],
    "gpu/*.py": ["gpu", "ops"],
    "ops/*/api.py": ["backends", "checks", "ops.*.reference", "ops.prepared"],
    "ops/prepared.py": [],
    "ops/packing.py": ["_native"],
    "ops/tape.py": [],
    "inference/*.py": ["ops", "backends", "checks", "checkpoints", "model", "blocks", "layers", "inference"],
    "_native.py": ["_C"],
    "backends.py": ["_native", "_version", "checks", "gpu.choices"],
    "checks.py": [],
    "layers.py": ["ops", "checks"],
    "blocks.py": ["ops", "layers", "checks"],
    "model.py": ["blocks", "layers", "checks"],
    "checkpoints.py": ["model"],
    "testing.py": [],
    "images.py": [],
}
# The hard dependencies, and who else may use them; everything else from outside is optional and stays inside functions.
EVERYWHERE = {"torch", "numpy", "safetensors"}
APPLICATION = {
    "cli.py": {"click", "rich", "PIL"},
    "predict.py": {"PIL"},
    "images.py": {"PIL"},
    "bench": {"rich", "PIL"},
    "gpu": {"click", "rich"},
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


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


@pytest.mark.parametrize("pattern", LAW)
def test_modules_import_only_what_the_law_allows(pattern: str) -> None:
    allowed = [re.escape(f"hifuse_fast.{name}").replace(r"\*", r"\w+") for name in LAW[pattern]]
    for path in sorted(PACKAGE.glob(pattern)):
        own = path.relative_to(ROOT).parent.as_posix().replace("/", ".")
        for name in imports(path):
            if not name.startswith("hifuse_fast"):
                continue
            # `from hifuse_fast.ops.x import reference` names a module; so does `from hifuse_fast import backends`
            assert any(re.match(rf"{rule}(\.|$)", name) for rule in allowed), f"{path.relative_to(ROOT)} imports {name} ({own})"


def test_the_law_covers_every_op() -> None:
    for folder in (PACKAGE / "ops").iterdir():
        if folder.is_dir() and folder.name != "__pycache__":
            assert {path.stem for path in folder.glob("*.py")} <= {
                "__init__",
                "api",
                "reference",
                "native",
                "triton",
                "triton_kernels",
                "triton_maps",
            }
            assert (folder / "api.py").exists()
            assert (folder / "reference.py").exists()


def test_outside_packages_at_the_top_of_a_file() -> None:
    standard = sys.stdlib_module_names
    for path in sources():
        place = path.relative_to(PACKAGE).parts[0]
        triton = {"triton"} if place == "gpu" or path.name.startswith("triton") else set()
        allowed = EVERYWHERE | APPLICATION.get(place, set()) | triton | {"hifuse_fast"}
        outside = {name.split(".")[0] for name in imports(path, top_level_only=True)} - set(standard) - allowed
        assert not outside, f"{path.relative_to(ROOT)} imports {outside} at its top"


def test_kernels_know_no_torch_and_no_python() -> None:
    files = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"} and p.parent.name != "bindings"]
    assert files
    for path in files:
        includes = re.findall(r"#include [<\"]([^>\"]+)", path.read_text())
        assert not [name for name in includes if re.match(r"(torch|ATen|c10|pybind11|Python)", name)], path


def test_only_the_ptx_file_has_inline_ptx() -> None:
    for path in (ROOT / "csrc" / "cuda").rglob("*") if (ROOT / "csrc" / "cuda").exists() else []:
        assert path.name == "ptx.cuh" or not re.search(r"\basm\s*(volatile)?\s*\(", path.read_text()), path


def test_importing_the_package_is_light() -> None:
    """No optional or application package is loaded by `import hifuse_fast`."""
    code = "import sys, hifuse_fast; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"click", "rich", "PIL", "matplotlib", "skimage", "torchvision", "timm"} & set(loaded)
