"""Checkpoints: read safely, recognise, load, save. A file is safetensors, or a torch file read with weights_only=True."""

from hifuse_fast.checkpoints.errors import CheckpointError
from hifuse_fast.checkpoints.load import create_model_from_checkpoint
from hifuse_fast.checkpoints.read import load_checkpoint, read_record
from hifuse_fast.checkpoints.recognise import describe_checkpoint
from hifuse_fast.checkpoints.save import save_checkpoint

__all__ = [
    "CheckpointError",
    "create_model_from_checkpoint",
    "describe_checkpoint",
    "load_checkpoint",
    "read_record",
    "save_checkpoint",
]
