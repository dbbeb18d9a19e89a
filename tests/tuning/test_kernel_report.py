"""Every kernel is compiled for every architecture without a GPU, spills nothing and fits; and the report can fail.

In processes of their own: the tests' process has Triton's interpreter on, which compiles nothing.
"""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from hifuse_fast import create_model, optimize_for_inference
from hifuse_fast.backends import select
from hifuse_fast.backends.triton import compile, launch
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.tuning import calls, report
from hifuse_fast.tuning.frozen_calls import CLASSES, frozen_calls
from tests.support.processes import module, run

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(code, *arguments, environment=ENVIRONMENT | variables)


def check(
    tmp_path: Path, *arguments: str, architectures: Sequence[str] = report.ARCHITECTURES, jobs: int = 1
) -> list[dict[str, str]]:
    """The lines of the report of these architectures, none of which fails."""
    file = tmp_path / "report.csv"
    options = ["--architectures", ",".join(architectures), "--jobs", str(jobs), "--output", str(file)]
    done = python(module("hifuse_fast.tuning.report"), *options, *arguments)
    lines = list(csv.DictReader(file.open())) if file.exists() else []
    failing = [f"{line['architecture']} {line['kernel']} {line['constants']}: {line['note']}" for line in lines
               if "FAILS" in line["note"]]  # fmt: skip
    assert done.returncode == 0, "\n".join(failing) or done.stdout + done.stderr
    assert failing == []
    assert {line["architecture"] for line in lines} == set(architectures)
    assert all(line["spill"] == "0" and float(line["occ."].removesuffix(" %")) > 0 for line in lines)
    return lines


WIDEST = (
    "window_attention shift 3 7x7",
    "linear fc1 7x7",
    "local_block local 7x7",
    "depthwise_norm dwconv 7x7",
    "concat_norm gated 7x7",
    "batch_norm bn1 7x7",
    "layer_norm norm1 7x7",
    "max_mean over channels 7x7",
    "max_mean over pixels 7x7",
    "mixer dense 7x7",
    "mixer depthwise 7x7",
    "conv3 7x7",
    "gates 7x7",
)


def test_no_kernel_spills_or_is_too_large(tmp_path: Path) -> None:
    """Every kernel, for the widest maps, in one call of each kind: the slow test has them all."""
    lines = check(tmp_path, "--dtypes", "bfloat16", "--calls", ",".join(WIDEST), architectures=["sm_90"])
    found = {line["kernel"].split()[0] for line in lines}
    assert found >= {call.op for call in calls.all_calls()}
    assert found >= {"gated_concat", "pointwise"}  # the frozen network's own, and those of several ops
    hopper = [line for line in lines if line["kernel"] == "window_attention forward"]
    assert hopper
    assert all("wgmma" in line["tensor cores"] for line in hopper)


def test_kernels_are_compiled_for_every_architecture(tmp_path: Path) -> None:
    check(tmp_path, "--dtypes", "bfloat16", "--calls", "linear fc1 7x7")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_no_kernel_of_any_call_dtype_and_batch_spills_or_is_too_large(tmp_path: Path, dtype: str) -> None:
    check(tmp_path, "--dtypes", dtype, "--batch", "64", "--batch", "1", jobs=2)


BROKEN = """
import json, sys
from pathlib import Path
from click.testing import CliRunner
from hifuse_fast.tuning import calls, report
from hifuse_fast.backends import tables

def run(kernel, config, call):
    with tables.override(kernel, config):
        options = {"calls": call, "jobs": "1", "architectures": "sm_90", "dtypes": "bfloat16", "output": sys.argv[1]}
        done = CliRunner().invoke(report.main, [f"--{name}={value}" for name, value in options.items()])
    return done.exit_code, Path(sys.argv[1]).read_text()

entries = tables.table("sm_90")["linear_forward"].values()
fused = {k: v for k, v in next(entry for entry in entries if entry["fused"]).items() if k not in ("origin", "maxnreg")}
large = {"BLOCK_M": 64, "BLOCK_N": 128, "BLOCK_K": 128, "num_warps": 8, "num_stages": 6}
print(json.dumps([
    run("layer_norm_forward", {"elements": 16384, "num_warps": 1}, "layer_norm norm1 56x56"),
    run("linear_forward", fused | large, "linear fc1 28x28"),
    run("layer_norm_forward", {"elements": 3 * 128, "num_warps": 4}, "layer_norm norm1 56x56"),
    run("layer_norm_forward", {"num_warps": 4}, "layer_norm norm1 56x56"),
]))
"""


def test_the_report_fails_where_a_kernel_does(tmp_path: Path) -> None:
    done = python(BROKEN, str(tmp_path / "report.md"))
    assert done.returncode == 0, done.stderr
    spilling, large, broken, refused = json.loads(done.stdout)
    for (code, output), reason in (
        (spilling, "FAILS: spills"),
        (large, "FAILS: shared memory over"),
        (broken, "FAILS: does not compile"),  # three rows are no power of two
        (refused, "FAILS: KeyError: 'elements'"),
    ):
        assert code == 1, output
        assert reason in output, output


SAME = """
import os
from pathlib import Path
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from hifuse_fast.tuning import calls
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.triton import compile

class Hopper:  # a driver without a device: a launch is compiled, and not run
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

def compiled():
    return len(list(Path(os.environ["TRITON_CACHE_DIR"]).glob("*/*.cubin")))

with recording("sm_90") as record:
    for call in calls.choose("linear fc1 7x7,layer_norm norm1 7x7"):
        call.run(call.inputs(64, torch.bfloat16, "meta"), call.gradient(64, torch.bfloat16, "meta"), "triton")
for each in {compile.compilation(each, "sm_90") for each in record.launches}:
    each.compile()
before = compiled()
driver.set_active(Hopper())
for each in record.launches:
    each.kernel.warmup(*each.args, grid=each.grid, **each.constants)
print(before, compiled())
"""


def test_a_launch_finds_what_was_compiled_ahead(tmp_path: Path) -> None:
    """So what the report reads is what runs, and tuning may compile in other processes."""
    done = python(SAME, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after == before >= 4


AHEAD = """
import torch
from hifuse_fast.tuning import calls
from hifuse_fast.backends.triton import compile

torch.cuda.get_device_capability = lambda *device: (9, 0)
named = list(calls.choose("layer_norm norm1 7x7,max_mean over pixels 7x7"))
inputs = [call.inputs(64, torch.bfloat16, "meta") for call in named]
gradients = [call.gradient(64, torch.bfloat16, "meta") for call in named]

def step():
    for call, given, gradient in zip(named, inputs, gradients, strict=True):
        call.run(given, gradient, "triton")
        call.run(given, gradient, "triton")

print(compile.compile_ahead(step, jobs=2))
"""


def test_all_that_a_call_launches_is_compiled_ahead(tmp_path: Path) -> None:
    """Each kernel once, by threads of this process; and nothing is launched, for there is no device."""
    done = python(AHEAD, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(list(tmp_path.glob("*/*.cubin"))) >= 5


@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off")
def test_the_interpreter_is_refused() -> None:
    done = CliRunner().invoke(report.main, [])
    assert done.exit_code == 1
    assert "TRITON_INTERPRET is set" in done.output


def test_kernels_of_triton_are_recorded_whatever_else_an_op_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of other languages have reports of their own."""
    asked = []
    monkeypatch.setattr(calls.Call, "run", lambda call, inputs, grad, backend: asked.append(backend))
    monkeypatch.setitem(select.RUNS_ON, "third", ("cuda",))
    monkeypatch.setitem(select.OPS, "layer_norm", ("third", "triton", "native"))
    assert report.report(calls.choose("norm1 7x7"), ["sm_90"], ["bfloat16"]) == []
    assert asked == ["triton"] * len(calls.MODES)


@pytest.mark.parametrize(
    ("module", "name"),
    [("backends.triton.pointwise", "pointwise"), ("ops.functions.mlp.triton", "mlp"), ("ops.prepared.stem.triton", "stem")],
)
def test_a_kernel_goes_by_its_op(module: str, name: str) -> None:
    kernel, signature = f"hifuse_fast.{module}:_some_kernel", (("x_ptr", "*bf16"),)
    made = compile.Compilation(kernel, "sm_90", signature, (("BLOCK", 8),), (), (("num_warps", 4),))
    assert report._describe(made) == (f"{name} some", "bf16", "BLOCK=8")


def test_bad_options_are_named() -> None:
    for option, message in (("--dtypes=int8", "--dtypes must be of"), ("--calls=pool", "no call has 'pool' in its name")):
        done = CliRunner().invoke(report.main, [option])
        assert done.exit_code == 2
        assert message in done.output


def test_flop_and_bytes_of_the_calls() -> None:
    (attention,) = calls.choose("window_attention shift 3 56x56")
    assert attention.flop(1, "forward") == 2 * 2 * 64 * 3 * 49 * 49 * 32  # two products, 64 windows, 3 heads
    assert attention.moved(2, "forward", 4) == 4 * (2 * 56 * 56 * 4 * 96 + 169 * 3)
    assert attention.moved(2, "forward+backward", 4) == 4 * (2 * 56 * 56 * 11 * 96 + 3 * 169 * 3)
    (merging,) = calls.choose("linear merging 14x14")
    assert merging.flop(3, "forward+backward") == 3 * 3 * 2 * 49 * 1536 * 768
    (fc1,) = calls.choose("linear fc1 7x7")
    pixel, parameters = 49 * 768, 768 * 769
    assert fc1.moved(1, "forward", 2) == 2 * (3 * pixel + parameters)
    assert fc1.moved(1, "forward+backward", 2) == 2 * (3 * pixel + parameters + 2 * (pixel + parameters) + pixel)


@pytest.mark.parametrize("call", calls.choose("56x56x96,224,1x1x768", frozen_calls()), ids=lambda call: call.name)
def test_prepared_calls_run(call: calls.PreparedCall) -> None:
    inputs = call.inputs(1, torch.bfloat16, "cpu")
    assert {inputs[name].dtype for name in call.parameters} == {torch.float32}
    bound = call.bind(inputs, None, "reference")
    out = bound()
    assert sum(x.numel() for x in out) == math.prod(call.out)
    assert all(x.dtype == torch.bfloat16 and x.isfinite().all() for x in out)
    assert all(x.equal(y) for x, y in zip(out, bound(), strict=True))


def test_prepared_calls_are_those_of_the_frozen_network() -> None:
    """By the shapes of their weights."""
    frozen = optimize_for_inference(create_model("hifuse_small", CLASSES).eval(), backend="reference")
    made = {shapes({name: x.shape for name, x in op.packed().items()}) for op in frozen.modules() if isinstance(op, PreparedOp)}
    assert made == {shapes(call.parameters) for call in frozen_calls()}


def shapes(parameters: Mapping[str, Sequence[int]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(shape)) for name, shape in sorted(parameters.items()))


@pytest.mark.parametrize("call", calls.choose("7x7"), ids=lambda call: call.name)
def test_calls_run(call: calls.Call) -> None:
    inputs = call.inputs(1, torch.float32, "cpu")
    assert all(x.equal(y) for x, y in zip(inputs.values(), call.inputs(1, torch.float32, "cpu").values(), strict=True))
    out, *grads = call.run(inputs, call.gradient(1, torch.float32, "cpu"), "reference")
    assert out.shape == (1, *call.out)
    assert [grad.shape for grad in grads] == [x.shape for x in inputs.values()]
    assert out.isfinite().all()


def test_predictions_have_every_call() -> None:
    done = CliRunner().invoke(report.main, ["--predict"])
    assert done.exit_code == 0
    assert "predicted, not measured" in done.output
    (norm,) = calls.choose("layer_norm norm1 56x56")
    seconds = norm.roofline(64, "forward", "bfloat16")
    assert seconds == pytest.approx(2 * 64 * 56 * 56 * 96 * 2 / 4.3e12, rel=1e-4)  # of memory; arithmetic is nothing
    (qkv,) = calls.choose("linear qkv 7x7")
    assert qkv.roofline(64, "forward", "bfloat16") == pytest.approx(2 * 64 * 49 * 768 * 2304 / 790e12)  # of arithmetic
