"""PyTorch's own ONNX exporters take the reference by themselves."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from hifuse_fast import use_backend
from hifuse_fast.backends.native import library
from hifuse_fast.backends.select import current_backend
from tests.support.frozen import narrow

X = torch.rand(1, 8, 8, 8)


def test_auto_is_the_reference_while_pytorch_traces_for_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert current_backend() == "auto"  # a call in another thread than the exporter's
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    assert current_backend() == "reference"
    with use_backend("native"):
        assert current_backend() == "native"


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
