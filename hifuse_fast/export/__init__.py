"""A network as a file for other runtimes."""

from hifuse_fast.export.onnx import Exported, to_onnx

__all__ = ["Exported", "to_onnx"]
