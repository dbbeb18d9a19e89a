"""What "auto" takes on a GPU, Triton or the reference, as the tables say; a GPU is played by the meta device, or by the CPU."""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor

from hifuse_fast import ops, use_backend
from hifuse_fast.backends import select, tables
from hifuse_fast.backends.triton import launch
from hifuse_fast.tuning import calls, table_file
from hifuse_fast.tuning.frozen_calls import frozen_calls

CALLS = calls.choose("7x7")
X, W = torch.randn(2, 3, 5, 16), torch.ones(16)


def triton(chosen: int, op: str = "layer_norm") -> AbstractContextManager[None]:
    """As if the tables said so."""
    return tables.override(op, {"triton": chosen})


def asked(call: calls.Call, backend: str = "auto") -> list[tuple[str, str]]:
    """What a call on a GPU, with its backward, asks the tables for: the choice, and the tiles of its kernels."""
    grad = call.gradient(1, torch.bfloat16, "meta") if "forward+backward" in call.modes else None
    with launch.recording("sm_90"), tables.lookups() as found:
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
    with triton(1, call.op):
        choice, *others = asked(call)
        assert choice[0] == call.op
        assert others == kernels  # it is asked for once, not in the backward again
    with triton(0, call.op):
        assert asked(call) == [choice]
        assert asked(call, "triton") == kernels  # asked for by name, it is never overridden
        with use_backend("triton"):
            assert asked(call) == kernels
    assert asked(call, "reference") == []


def test_every_op_with_gradients_has_a_choice_everywhere() -> None:
    for architecture in tables.architectures():
        for op in {call.op for call in calls.all_calls()}:
            assert tables.table(architecture)[op]["*"]["triton"] in (0, 1)


def test_keys_tell_apart_what_the_calls_differ_in() -> None:
    found = {call.name: asked(call)[0] for call in CALLS if call.op == "batch_norm"}
    assert found == {
        "batch_norm W_l 7x7x768": ("batch_norm", "16-bit 768 training"),
        "batch_norm spatial 7x7x1": ("batch_norm", "16-bit 1 training sigmoid"),
        "batch_norm W 7x7x768": ("batch_norm", "16-bit 768 training gelu"),
        "batch_norm bn1 7x7x2304": ("batch_norm", "16-bit 2304 training"),
        "batch_norm conv3 7x7x768": ("batch_norm", "16-bit 768 training residual"),
    }
    assert len({asked(call)[0] for call in CALLS if call.op != "batch_norm"}) == len(CALLS) - len(found)


def test_the_cpu_does_not_ask() -> None:
    with triton(0):
        assert looked_up("auto") == set()
        assert looked_up("auto", X.to("meta")) == {"layer_norm"}


@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off")
def test_a_result_is_that_of_the_way_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "_auto_triton", ("cpu",))
    with triton(0):
        assert looked_up("auto") == {"layer_norm"}
        assert looked_up("triton") == {"layer_norm_forward"}
        assert looked_up("reference") == set()
        assert ops.layer_norm(X, W, W).equal(ops.layer_norm(X, W, W, backend="reference"))
    with triton(1):
        assert looked_up("auto") == {"layer_norm", "layer_norm_forward"}
        assert ops.layer_norm(X, W, W).equal(ops.layer_norm(X, W, W, backend="triton"))


@pytest.mark.skipif(not launch.INTERPRETED, reason="the interpreter is off")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("chosen", [0, 1])
def test_compiled_code_has_the_choice_in_it(monkeypatch: pytest.MonkeyPatch, chosen: int, dynamic: bool) -> None:
    monkeypatch.setattr(select, "_auto_triton", ("cpu",))
    torch._dynamo.reset()
    compiled = torch.compile(ops.layer_norm, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    with triton(chosen), tables.lookups() as found:
        out = compiled(X, W, W)
    assert ("layer_norm_forward" in {name for name, _ in found}) == bool(chosen)
    torch.testing.assert_close(out, ops.layer_norm(X, W, W, backend="reference"))


SOME = "qkv 7x7,fc1 7x7,shift 3 7x7,norm1 7x7,dwconv 7x7,gated 7x7,over channels 7x7,conv3 7x7,depthwise 7x7"


@pytest.mark.parametrize("call", calls.choose(SOME), ids=lambda call: call.name)
def test_every_op_compiles_with_the_choice(monkeypatch: pytest.MonkeyPatch, call: calls.Call) -> None:
    monkeypatch.setattr(select, "_auto_triton", ("cpu",))
    torch._dynamo.reset()
    inputs = call.inputs(1, torch.float32, "cpu")
    with triton(0, call.op):
        out = torch.compile(call, fullgraph=True, backend="aot_eager")(inputs)
    torch.testing.assert_close(out, call(inputs, "reference"))


def test_prepared_ops_do_not_ask() -> None:
    found = {name for call in frozen_calls() for name, _ in asked(call)}
    assert found
    assert found.isdisjoint({call.op for call in calls.all_calls()})


def table(**sections: dict[str, dict[str, object]]) -> dict[str, dict[str, dict[str, object]]]:
    return {"norm_forward": {"*": {"elements": 1, "origin": "predicted"}}, **sections}


def test_the_page_of_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = {"*": {"triton": 1, "origin": "predicted"}}
    product = {
        "*": {"fused": 0, "origin": "predicted"},
        "8x8": {"fused": 1, "origin": "predicted"},
        "9x9": {"fused": 1, "origin": "predicted"},
    }
    measured = {**predicted, "16-bit 96": {"triton": 0, "reference_time": 0.5, "origin": "Some GPU, 2026-01-02"}}
    known = {
        "sm_1": table(norm=predicted, pool=predicted, a_forward=product),
        "sm_2": table(norm=measured, pool=predicted, a_forward=product),
    }
    monkeypatch.setattr(tables, "architectures", lambda: list(known))
    monkeypatch.setattr(tables, "table", known.__getitem__)
    assert table_file.described() == (
        ["op", "calls", "sm_1", "sm_2"],
        [
            ["norm", "16-bit 96", "Triton (predicted)", "library (library / Triton 0.5, Some GPU, 2026-01-02)"],
            ["norm", "all others", "Triton (predicted)", "Triton (predicted)"],
            ["pool", "all", "Triton (predicted)", "Triton (predicted)"],
            ["product of a", "8x8, 9x9", "Triton (predicted)", "Triton (predicted)"],
            ["product of a", "all others", "library (predicted)", "library (predicted)"],
        ],
    )
