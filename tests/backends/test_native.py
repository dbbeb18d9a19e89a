"""The compiled library: what it says of itself, its instruction sets, and the package without it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

import hifuse_fast
from hifuse_fast.backends import select
from hifuse_fast.backends.native import library
from tests.support.paths import ROOT
from tests.support.processes import WITHOUT_EDITABLE, module, python, run

needs_native = pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))
ISAS = library.lib.compiled_isas() if library.lib else []


def skip_unless_another(isa: str) -> None:
    """What this CPU does not run cannot be tested, and what this process runs is by all other tests."""
    if isa not in library.lib.usable_isas():
        pytest.skip(f"this CPU does not run {isa}")
    if isa == library.lib.isa():
        pytest.skip(f"all other tests run {isa}")


RUN_OP = """
import torch, hifuse_fast
torch.manual_seed(0)
qkv, table, bias = torch.randn(2, 9, 13, 96, requires_grad=True), torch.randn(169, 2), torch.randn(96)
out = hifuse_fast.ops.window_attention(qkv, table, num_heads=2, shift_size=3, qkv_bias=bias)
out.square().sum().backward()
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler: a pure-Python install is right")
def test_it_is_built_where_there_is_a_compiler() -> None:
    assert library.lib is not None, library.why_missing


@needs_native
def test_build_information() -> None:
    assert ISAS[0] == "baseline"
    usable = library.lib.usable_isas()
    assert set(usable) <= set(ISAS)
    assert library.lib.isa() in usable
    assert {"compiler", "torch headers", "torch abi"} <= set(library.lib.build_info())
    with pytest.raises(ValueError, match="'mmx' is not compiled in"):
        library.lib.select_isa("mmx")


@needs_native
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_computes_the_same(isa: str) -> None:
    skip_unless_another(isa)
    check = f"""
hifuse_fast.backends.native.library.lib.select_isa({isa!r})
from hifuse_fast.testing import assert_within_rule
from tests.ops.functions import test_window_attention as t
for case in t.CASES:
    for dtype in t.DTYPES:
        t.check_parity(case, dtype, "native")
    tensors, grad = case.tensors(torch.float64)
    for a, e in zip(*[t.run(case, tensors, grad, b, torch.float64) for b in ("native", "reference")], strict=True):
        assert t.relative_error(a, e) < 1e-12
print(hifuse_fast.backends.native.library.lib.isa())
"""
    assert python(RUN_OP + check) == isa


CAPABILITIES = [("avx2", "avx2"), ("avx512", "avx512"), ("nonsense", None)]  # a process each


@needs_native
@pytest.mark.parametrize(
    ("capability", "expected"),
    [("default", "baseline"), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in CAPABILITIES)],
)
def test_aten_cpu_capability_is_honoured(capability: str, expected: str | None) -> None:
    usable = library.lib.usable_isas()
    best = usable[-1] if expected is None else expected
    if best not in usable:
        pytest.skip(f"this CPU does not run {best}")
    isa = python(RUN_OP + "print(hifuse_fast.backends.native.library.lib.isa())", ATEN_CPU_CAPABILITY=capability)
    assert isa == best


@needs_native
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512", "avx512_bf16"])
def test_prepared_ops_on_lesser_instruction_sets(capability: str) -> None:
    """The parity tests of the prepared ops again, in a process that PyTorch's variable caps to an instruction set."""
    skip_unless_another(capability.replace("default", "baseline"))
    files = [f"tests/ops/prepared/test_{op}.py" for op in ("linear", "stem", "local_block", "gated_concat", "mixer", "mlp")]
    arguments = ["-q", "-k", "parity and native", "-p", "no:cacheprovider", *files]
    done = run(module("pytest"), *arguments, environment={**os.environ, "ATEN_CPU_CAPABILITY": capability})
    assert done.returncode == 0, done.stdout[-3000:]


@needs_native
def test_a_library_of_other_sources_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a pull without a build: an op of these sources is not in it, and the reference serves."""

    def refuse(_: object) -> None:
        raise RuntimeError("operator hifuse_fast::new_out does not exist")

    monkeypatch.setattr(library.fakes, "register", refuse)
    found, why = library._load()
    assert found is None
    assert (
        why == "the compiled library was built of other sources, build it again: operator hifuse_fast::new_out does not exist"
    )


@needs_native
def test_every_op_has_a_fake_once_the_package_is_imported() -> None:
    """So that an exported program can be loaded, and taken apart, by a process that made none."""
    code = """
import torch, hifuse_fast
from torch._library.simple_registry import singleton
ops = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("hifuse_fast::")]
print(len(ops), *[name for name in ops if singleton.find(name).fake_impl.kernel is None])
"""
    count, *without = python(code).split()
    assert int(count) > 10
    assert not without


WITHOUT = {
    "the compiled library": 'sys.modules["hifuse_fast._C"] = None',
    "triton": 'sys.modules["triton"] = None',
    "both": 'sys.modules["hifuse_fast._C"] = None; sys.modules["triton"] = None',
}


@pytest.mark.parametrize("missing", WITHOUT)
def test_the_package_is_complete_without(missing: str) -> None:
    """Importing it fails, as it does where it is broken or absent: the reference serves, and info() has the reason."""
    code = f"""
import sys
{WITHOUT[missing]}
{RUN_OP}
served = hifuse_fast.info().ops["window_attention"]
print(out.double().sum().item(), served["native cpu"], served["triton cpu"], sep=" | ")
"""
    total, native, triton = python(code).split(" | ")
    here: dict[str, torch.Tensor] = {}
    exec(RUN_OP, here)
    assert float(total) == pytest.approx(here["out"].double().sum().item(), rel=1e-5)
    assert ("library" in native) == (missing in {"the compiled library", "both"})
    assert triton != "None" or missing == "the compiled library"  # which leaves Triton's interpreter


WHY_MISSING = """
import importlib
from pathlib import Path
from hifuse_fast.backends.native import library
print(library.why_missing)
Path("hifuse_fast/_native_skipped.txt").write_text("no C++ compiler was found")
print(library._load()[1])
Path("hifuse_fast/_C.so").write_bytes(b"not a library")
importlib.invalidate_caches()
print(library._load()[1])
"""


def test_a_broken_library_is_told_from_a_missing_one(tmp_path: Path) -> None:
    without = shutil.ignore_patterns("*.so", "__pycache__", "_native_skipped.txt")
    shutil.copytree(ROOT / "hifuse_fast", tmp_path / "hifuse_fast", ignore=without)
    missing, skipped, broken = python(WITHOUT_EDITABLE + WHY_MISSING, tmp_path).splitlines()
    assert "installed without building it" in missing
    assert skipped.endswith("is not built: no C++ compiler was found")
    assert "failed to load" in broken


def test_info_names_reasons() -> None:
    info = hifuse_fast.info()
    assert info.machine["torch"] == torch.__version__
    assert info.ops["window_attention"]["reference cpu"] is None
    assert "triton" in str(info)
    for backend, reason in info.ops["window_attention"].items():
        assert reason is None or len(reason) > 10, backend


# ---- The choice of backend ---------------------------------------------------------------------------------------------


def test_use_backend_nests_and_gives_way() -> None:
    assert select.current_backend() == "auto"
    with hifuse_fast.use_backend("reference"):
        assert select.select("window_attention", "auto") is None
        with hifuse_fast.use_backend("auto"):
            assert select.current_backend() == "auto"
        assert select.current_backend() == "reference"
        if library.lib is not None:  # an explicit backend on the call wins
            arguments = {"device": torch.device("cpu"), "dtype": torch.float32}
            assert select.select("window_attention", "native", **arguments) is not None
    assert select.current_backend() == "auto"


def test_use_backend_is_local_to_the_thread_and_survives_errors() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, hifuse_fast.use_backend("reference"):
        assert pool.submit(select.current_backend).result() == "auto"
    with pytest.raises(RuntimeError, match="inside"), hifuse_fast.use_backend("reference"):
        raise RuntimeError("inside")
    assert select.current_backend() == "auto"


def test_unknown_backends_are_refused_before_anything_changes() -> None:
    with pytest.raises(ValueError, match="'mps'"), hifuse_fast.use_backend("mps"):
        pass
    assert select.current_backend() == "auto"
