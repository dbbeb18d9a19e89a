"""A network as a file for other runtimes."""

from hifuse_fast.export.onnx import DYNAMIC, OPSET, Exported, to_onnx

__all__ = ["DYNAMIC", "OPSET", "Exported", "to_onnx"]
