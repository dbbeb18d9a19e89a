"""hifuse_fast: HiFuse for medical image classification, fast on CPUs and GPUs, proven equal to the official network."""

from hifuse_fast import export, ops
from hifuse_fast._version import __version__
from hifuse_fast.backends.info import Info, info
from hifuse_fast.backends.select import BackendError, use_backend
from hifuse_fast.blocks import GlobalBlock, HFFBlock, InvertedMLP, LocalBlock, PatchMerging, WindowAttention
from hifuse_fast.checkpoints import (
    CheckpointError,
    create_model_from_checkpoint,
    describe_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from hifuse_fast.inference import OptimizedHiFuse, load_optimized, optimize_for_inference
from hifuse_fast.layers import reshape_transform
from hifuse_fast.model import HiFuse, HiFuseFeatures, StageMaps, create_model, list_models
from hifuse_fast.options import HiFuseOptions

__all__ = [
    "BackendError",
    "CheckpointError",
    "GlobalBlock",
    "HFFBlock",
    "HiFuse",
    "HiFuseFeatures",
    "HiFuseOptions",
    "Info",
    "InvertedMLP",
    "LocalBlock",
    "OptimizedHiFuse",
    "PatchMerging",
    "StageMaps",
    "WindowAttention",
    "__version__",
    "create_model",
    "create_model_from_checkpoint",
    "describe_checkpoint",
    "export",
    "info",
    "list_models",
    "load_checkpoint",
    "load_optimized",
    "ops",
    "optimize_for_inference",
    "reshape_transform",
    "save_checkpoint",
    "use_backend",
]
