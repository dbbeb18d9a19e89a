"""PyTorch's own ONNX exporters take the reference by themselves."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from hifuse_fast import optimize_for_inference, use_backend
from hifuse_fast.backends.native import library
from hifuse_fast.backends.select import current_backend
from tests.support.frozen import narrow

X = torch.rand(1, 8, 8, 8)
IMAGES = torch.rand(1, 2, 32, 32)


def test_auto_is_the_reference_while_pytorch_traces_for_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert current_backend() == "auto"  # a call in another thread than the exporter's
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert current_backend() == "reference"
    with use_backend("native"):
        assert current_backend() == "native"


def test_a_frozen_network_on_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = optimize_for_inference(narrow().float())
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    if any(op.backend != "reference" for op in frozen._made.values()):
        with pytest.raises(RuntimeError, match=r"torch.onnx.export cannot take a frozen network.*hifuse_fast.export.to_onnx"):
            frozen._traced(IMAGES)
    frozen = optimize_for_inference(narrow().float(), backend="reference")
    torch.testing.assert_close(frozen._traced(IMAGES), frozen(IMAGES))


def test_torch_jit_traces_the_reference() -> None:
    model = narrow().float().eval()
    traced = torch.jit.trace(model, IMAGES)
    assert "hifuse_fast::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(2 * IMAGES), model(2 * IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [True, False], ids=["new", "TorchScript"])
def test_the_graph_has_no_op_of_ours(dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    attn = narrow().layers1.blocks[0].float()
    called = [str(node.target) for node in torch.export.export(attn, (X,)).graph.nodes]
    assert "hifuse_fast.fused_window_attention.default" in called
    if dynamo:
        graph = torch.onnx.export(attn, (X,), dynamo=True, verbose=False).model_proto
    else:
        file = io.BytesIO()
        torch.onnx.export(attn, (X,), file, dynamo=False)
        graph = onnx.load_from_string(file.getvalue())
    assert {node.domain for node in graph.graph.node} == {""}
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    out = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0])
    torch.testing.assert_close(out, attn(X), rtol=1e-4, atol=1e-4)
