"""What runs on a GPU is marked so, for `make gpu-check` chooses tests by the marker."""

from __future__ import annotations

import ast

import pytest

from tests.support.paths import ROOT

#: Names of `tests.support` that stand for the CUDA device where there is one.
ON_THE_DEVICE = {"DEVICE", "KERNELS", "TRITON", "device_of", "needs_gpu", "place"}


def uses_the_device(source: str) -> bool:
    """Whether a test file asks for the device, or for kernels that run there."""
    nodes = list(ast.walk(ast.parse(source)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests.support")]
    asked = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "kernels"]
    return any(name.name in ON_THE_DEVICE for node in imports for name in node.names) or any(
        isinstance(argument, ast.Constant) and argument.value in ("triton", "cuda") for node in asked for argument in node.args
    )


def test_a_file_that_uses_the_device_is_marked() -> None:
    sources = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    using = [path for path, source in sources.items() if uses_the_device(source)]
    assert len(using) > 10
    assert [path for path in using if "pytest.mark.gpu" not in sources[path]] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from tests.support.kernels import DEVICE, uniform", True),
        ("from tests.support.attention import KERNELS", True),
        ('from tests.support.kernels import kernels\nK = kernels("linear", "native", "triton")', True),
        ('from tests.support.kernels import kernels\nK = kernels("linear", "cuda")', True),
        ('from tests.support.kernels import kernels\nK = kernels("linear", "native")', False),
        ('DEVICE = "Some GPU"', False),
    ],
)
def test_the_question_can_be_answered_either_way(source: str, expected: bool) -> None:
    assert uses_the_device(source) == expected
