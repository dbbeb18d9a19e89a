"""Which backend "auto" takes on a GPU, as the tables say; a GPU is played by the meta device, or by the CPU."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from hifuse_fast import ops, use_backend
from hifuse_fast.backends import select, tables
from hifuse_fast.backends.record import recording
from hifuse_fast.backends.triton import launch
from hifuse_fast.ops.prepared.base import PreparedOp
from hifuse_fast.tuning import calls
from hifuse_fast.tuning.frozen_calls import network_calls

CALLS = calls.choose("7x7", network_calls())
X, W = torch.randn(2, 3, 5, 16), torch.ones(16)
TRITON, REFERENCE = ["triton", "reference"], ["reference", "triton"]


def ordered(order: list[str], op: str = "layer_norm") -> AbstractContextManager[None]:
    """As if the tables said so."""
    return tables.override(op, {"order": order})


@pytest.fixture
def cpu_plays_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(select.RUNS_ON, "triton", ("cpu",))
    monkeypatch.setattr(select, "HAVE_TABLES", ("cpu",))


def asked(call: calls.Call, backend: str = "auto") -> list[tuple[str, str]]:
    """What a call on a GPU, with its backward, asks the tables for: the choice, and the tiles of its kernels."""
    grad = call.gradient(1, torch.bfloat16, "meta") if "forward+backward" in call.modes else None
    with recording("sm_90"), tables.lookups() as found:
        call.run(call.inputs(1, torch.bfloat16, "meta"), grad, backend)
    return found


def looked_up(backend: str, x: Tensor = X) -> set[str]:
    """The kernels and choices that a call asks the tables for."""
    with tables.lookups() as found:
        ops.layer_norm(x, W.to(x.device), W.to(x.device), backend=backend)
    return {name for name, _ in found}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_auto_takes_what_the_table_says(call: calls.Call) -> None:
    kernels = asked(call, "triton")
    assert kernels
    with ordered(TRITON, call.op):
        choice, *others = asked(call)
        assert choice[0] == call.op
        assert others == kernels  # it is asked for once, not in the backward again
    with ordered(REFERENCE, call.op):
        assert asked(call) == [choice]
        assert asked(call, "triton") == kernels  # asked for by name, it is never overridden
        with use_backend("triton"):
            assert asked(call) == kernels
    assert asked(call, "reference") == []


def test_every_op_has_an_order_everywhere_and_nothing_else_has() -> None:
    for architecture in tables.architectures():
        table = tables.table(architecture)
        assert {name for name, entries in table.items() if "order" in entries["*"]} == set(select.OPS)
        for op in select.OPS:
            for entry in table[op].values():
                assert set(entry["order"]) <= {*select.OPS[op], "reference"}
                assert set(entry.get("times", ())) <= set(entry["order"][1:])


def test_keys_tell_apart_what_the_calls_differ_in() -> None:
    found = {call.name: asked(call)[0] for call in CALLS if call.op == "batch_norm"}
    assert found == {
        "batch_norm W_l 7x7x768": ("batch_norm", "16-bit 768 training"),
        "batch_norm spatial 7x7x1": ("batch_norm", "16-bit 1 training sigmoid"),
        "batch_norm W 7x7x768": ("batch_norm", "16-bit 768 training gelu"),
        "batch_norm bn1 7x7x2304": ("batch_norm", "16-bit 2304 training"),
        "batch_norm conv3 7x7x768": ("batch_norm", "16-bit 768 training residual"),
    }
    functions = [asked(call)[0] for call in CALLS if call.op != "batch_norm" and not call.op.startswith("prepare_")]
    assert len(set(functions)) == len(functions)


def test_a_prepared_op_has_the_key_of_its_function() -> None:
    def keys(op: str) -> set[str]:
        return {asked(call)[0][1] for call in network_calls() if call.op == op}

    for op in ("window_attention", "mlp"):
        assert keys(f"prepare_{op}") == keys(op)
    assert keys("prepare_mixer") == {key for key in keys("mixer") if key.endswith("dense")}
    both = {"16-bit 96 288 pixels norm", "16-bit 1536 768 patches norm"}  # qkv at stage 1, merging to stage 4
    assert keys("prepare_linear") >= both <= keys("linear")


def test_keys_of_prepared_ops() -> None:
    found = {call.name: asked(call)[0][1] for call in network_calls() if call.op.startswith("prepare_")}
    assert found["prepare_linear downsample 56x56x96"] == "16-bit 384 192 patches pixel-norm"
    assert found["prepare_linear up 14x14x384"] == "16-bit 384 768 pixels relu pool"
    assert found["prepare_linear output 7x7x768"] == "16-bit 768 768 pixels gelu"
    assert found["prepare_window_attention shift 3 7x7x2304"] == "16-bit 7 24 32 shifted"
    assert found["prepare_stem images 224x224x3"] == "16-bit 3 96"
    assert found["prepare_local_block local 7x7x768"] == "16-bit 768"
    assert found["prepare_gated_concat gates 7x7x768"] == "16-bit 768 48"
    assert found["prepare_mixer dense 7x7x2304"] == "16-bit 2304 dense"
    assert found["prepare_mlp with biases 7x7x2304"] == "16-bit 2304 9216 768"


def test_the_cpu_does_not_ask() -> None:
    with ordered(REFERENCE):
        assert looked_up("auto") == set()
        assert looked_up("auto", X.to("meta")) == {"layer_norm"}


@pytest.mark.usefixtures("cpu_plays_gpu")
@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off")
def test_a_result_is_that_of_the_backend_taken() -> None:
    with ordered(REFERENCE):
        assert looked_up("auto") == {"layer_norm"}
        assert looked_up("triton") == {"layer_norm_forward"}
        assert looked_up("reference") == set()
        assert ops.layer_norm(X, W, W).equal(ops.layer_norm(X, W, W, backend="reference"))
    with ordered(TRITON):
        assert looked_up("auto") == {"layer_norm", "layer_norm_forward"}
        assert ops.layer_norm(X, W, W).equal(ops.layer_norm(X, W, W, backend="triton"))


@pytest.mark.usefixtures("cpu_plays_gpu")
@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("order", [TRITON, REFERENCE])
def test_compiled_code_has_the_choice_in_it(order: list[str], dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ops.layer_norm, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with ordered(order), tables.lookups() as found:
        out = compiled(X, W, W)
    assert ("layer_norm_forward" in {name for name, _ in found}) == (order == TRITON)
    torch.testing.assert_close(out, ops.layer_norm(X, W, W, backend="reference"))


SOME = "qkv 7x7,fc1 7x7,shift 3 7x7,norm1 7x7,dwconv 7x7,gated 7x7,over channels 7x7,conv3 7x7,depthwise 7x7"


@pytest.mark.usefixtures("cpu_plays_gpu")
@pytest.mark.parametrize("call", calls.choose(SOME), ids=lambda call: call.name)
def test_every_op_compiles_with_the_choice(call: calls.Call) -> None:
    torch._dynamo.reset()
    inputs = call.inputs(1, torch.float32, "cpu")
    with ordered(REFERENCE, call.op):
        out = torch.compile(call, fullgraph=True, backend="aot_eager")(inputs)
    torch.testing.assert_close(out, call(inputs, "reference"))


# ---- Any number of rivals ----------------------------------------------------------------------------------------------


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A third backend of layer norm, twice the reference, and of the prepared mixer; `refuses` may be set to a reason."""
    function, prepared = ModuleType("layer_norm.third"), ModuleType("mixer.third")
    function.refuses = None

    def why_not(**call: Any) -> str | None:
        return function.refuses

    class Mixer(PreparedOp):
        backend = "third"

    function.why_not = prepared.why_not = why_not
    function.forward = lambda x, w, b, *, keep, **_: (2 * ops.layer_norm(x, w, b, backend="reference"), [])
    prepared.Mixer = Mixer
    monkeypatch.setitem(sys.modules, "hifuse_fast.ops.functions.layer_norm.third", function)
    monkeypatch.setitem(sys.modules, "hifuse_fast.ops.prepared.mixer.third", prepared)
    monkeypatch.setattr(select, "BACKENDS", (*select.BACKENDS, "third"))
    monkeypatch.setitem(select.RUNS_ON, "third", ("cpu", "meta"))
    monkeypatch.setitem(select.OPS, "layer_norm", ("triton", "third"))
    monkeypatch.setitem(select.OPS, "prepare_mixer", ("triton", "native", "third"))
    monkeypatch.setattr(select, "HAVE_TABLES", ("cpu", "meta"))
    monkeypatch.setattr(select, "_loaded", type(select._loaded)(**vars(select._loaded)))
    return function


def served(op: str = "layer_norm", device: str = "meta", **call: Any) -> str:
    return select.choose(op, "auto", device=torch.device(device), dtype=torch.float32, **call)


@pytest.mark.usefixtures("third")
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (["third", "triton", "reference"], "third"),
        (["triton", "third", "reference"], "triton"),
        (["reference", "third", "triton"], "reference"),
        (["of the future", "third", "reference"], "third"),  # a name that this version does not know
        (["native", "third"], "third"),  # which has no kernels for it
        (["of the future"], "reference"),  # nothing else is named
    ],
)
def test_the_first_of_the_order_that_can_serve_is_taken(order: list[str], expected: str) -> None:
    with ordered(order):
        assert served() == expected
    with ordered(order, "prepare_mixer"):
        op = ops.prepare_mixer(torch.empty(8, 1, 3, 3, device="meta"), dtype=torch.float32)
        assert op.backend == expected


def test_what_cannot_serve_is_passed_over(third: ModuleType) -> None:
    third.refuses = "it is Sunday"
    with ordered(["third", "triton", "reference"]):
        assert served() == "triton"
        assert served(device="cpu") == "reference"  # where Triton's interpreter is for tests
        with pytest.raises(select.BackendError, match="backend 'third' cannot serve layer_norm: it is Sunday"):
            select.choose("layer_norm", "third")
        with use_backend("third"), pytest.raises(select.BackendError, match="it is Sunday"):
            ops.layer_norm(X, W, W)


@pytest.mark.usefixtures("third")
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_third_backend_serves_eager_and_compiled(dynamic: bool) -> None:
    expected = 2 * ops.layer_norm(X, W, W, backend="reference")
    with ordered(["of the future", "third", "reference"]):
        torch.testing.assert_close(ops.layer_norm(X, W, W), expected)
        torch._dynamo.reset()
        compiled = torch.compile(ops.layer_norm, fullgraph=True, dynamic=dynamic, backend="eager")
        torch.testing.assert_close(compiled(X, W, W), expected)
