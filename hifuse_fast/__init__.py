"""hifuse_fast: HiFuse for medical image classification, fast on CPUs and GPUs, proven equal to the official network."""

from hifuse_fast import ops
from hifuse_fast.backends import BackendError, Info, info, use_backend

__version__ = "0.1.0"

__all__ = ["BackendError", "Info", "info", "ops", "use_backend"]
