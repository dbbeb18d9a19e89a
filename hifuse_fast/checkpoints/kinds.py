"""What kind of file holds weights: judged by its first bytes and never by its name."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hifuse_fast.checkpoints.errors import CheckpointError

SAFETENSORS, TORCH = "safetensors", "torch"
FROZEN = "hifuse_fast.optimized"  #: the format that the metadata of a frozen network's file names

_HEAD = 512  # bytes that are looked at
_LONGEST_HEADER = 10**8  # of a safetensors file, by its specification
_LONGEST_INDEX = 10**8
_SHARD = re.compile(r"-(\d+)-of-0*([2-9]|[1-9]\d+)\.\w+$")
_PACKED = "compressed with {}: unpack it first"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began its files before the zip format
_OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS, and not the file that it stands for: run `git lfs pull`",
    b"\x89HDF": "an HDF5 file, as Keras writes them: convert its weights to PyTorch first",
    b"\x93NUMPY": "a NumPy array: save a state_dict instead",
    b"%PDF": "a PDF document",
    b"\x1f\x8b": _PACKED.format("gzip"),
    b"BZh": _PACKED.format("bzip2"),
    b"\xfd7zXZ": _PACKED.format("xz"),
    b"(\xb5/\xfd": _PACKED.format("zstd"),
    b"7z\xbc\xaf": _PACKED.format("7-Zip"),
    b"\x80": "a pickle that torch.save did not write: load it where you trust it, and save its state_dict with torch.save",
}


def kind_of(path: Path) -> str:
    """SAFETENSORS or TORCH.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is something else; the message is what it is and what to do, for a sentence that begins "it is".
    """
    if path.is_dir():
        raise CheckpointError(f"a folder: name a file in it{_few_files(path)}")
    if not path.exists():
        raise FileNotFoundError(path)
    if not path.is_file():  # and so never waits for a pipe
        raise CheckpointError("a device or a pipe: name a file")
    shard = _SHARD.search(path.name)
    if shard:
        raise CheckpointError(f"one shard of {shard[2]}: {_MERGE}")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise CheckpointError("empty")
    if _is_safetensors(head):
        return SAFETENSORS
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head.startswith(_LEGACY):
        return TORCH
    raise CheckpointError(_name(path, head))


def is_frozen(path: Path) -> bool:
    """Whether a file is a frozen network, which `OptimizedHiFuse.save` wrote; False where it is absent or damaged."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            if not _is_safetensors(file.read(_HEAD)):
                return False
        with safe_open(path, framework="pt") as opened:
            return (opened.metadata() or {}).get("format") == FROZEN
    except (SafetensorError, OSError):
        return False


_MERGE = "load all shards, put their tensors into one state_dict, and save that"


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LONGEST_HEADER


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as opened:
            names = opened.namelist()
    except zipfile.BadZipFile:
        return TORCH  # a truncated one, as torch.load will say
    within = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in within:
        raise CheckpointError("a TorchScript archive, which holds code: save model.state_dict() with torch.save instead")
    if "data.pkl" in within:
        return TORCH
    if any(name.endswith(".npy") for name in within):
        raise CheckpointError("an archive of NumPy arrays: save a state_dict instead")
    raise CheckpointError("a zip archive that torch.save did not write: name a file of weights")


def _name(path: Path, head: bytes) -> str:
    """What a file is that is no checkpoint."""
    for start, what in _OTHERS.items():
        if head.startswith(start):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page (HTML), as a download gives that needs a login or another address: download the file itself"
    if text.startswith(b"{"):
        return _name_json(path)
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first"
    return "damaged, or neither a safetensors file nor one of torch.save"


def _name_json(path: Path) -> str:
    if path.stat().st_size <= _LONGEST_INDEX:
        try:
            shards = json.loads(path.read_bytes())["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return "a JSON file, and holds no weights"
        return f"the index of {len(set(map(str, shards)))} shards, and holds no weights: {_MERGE}"
    return "a JSON file, and holds no weights"


def _few_files(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir() if each.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"))
    return f", such as {', '.join(names[:3])}" if names else ""
