"""hifuse_fast: HiFuse for medical image classification, fast on CPUs and GPUs, proven equal to the official network."""

from hifuse_fast import ops
from hifuse_fast.backends import BackendError, Info, info, use_backend
from hifuse_fast.blocks import GlobalBlock, HFFBlock, InvertedMLP, LocalBlock, PatchMerging, WindowAttention
from hifuse_fast.model import HiFuse, HiFuseFeatures, StageMaps, create_model, list_models

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "GlobalBlock",
    "HFFBlock",
    "HiFuse",
    "HiFuseFeatures",
    "Info",
    "InvertedMLP",
    "LocalBlock",
    "PatchMerging",
    "StageMaps",
    "WindowAttention",
    "create_model",
    "info",
    "list_models",
    "ops",
    "use_backend",
]
