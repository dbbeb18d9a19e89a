"""Files of frozen networks that say what is not so: each is refused by name before load_optimized returns."""

from __future__ import annotations

import gzip
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from hifuse_fast import CheckpointError, HiFuseOptions, load_checkpoint, load_optimized, optimize_for_inference
from hifuse_fast.inference.configuration import Configuration
from hifuse_fast.inference.make import Packer
from hifuse_fast.inference.network import OptimizedHiFuse
from hifuse_fast.inference.shapes import plain_shapes
from hifuse_fast.ops.prepared.base import PreparedOp
from tests.support.frozen import VARIANTS, make

Tensors = dict[str, Tensor]
Change = Callable[[dict[str, Any], dict[str, Any], Tensors], object]


class Comparing(Packer):
    """Packs for the reference, and compares what is folded and packed with what is said of its shapes."""

    configuration: Configuration
    compared = 0

    def __call__(self, op: str, folding: Any, module: str = "", **options: Any) -> PreparedOp:
        made = super().__call__(op, folding, module, **options)
        shapes = plain_shapes(self.configuration, folding.__name__, module)
        plain = folding(self._weights, module)
        assert {name: tuple(tensor.shape) for name, tensor in plain.items()} == shapes, (folding, module)
        for backend in ("reference", "triton"):
            source = importlib.import_module(f"hifuse_fast.ops.prepared.{op}.{backend}")
            cls = getattr(source, type(made).__name__)
            for dtype in (torch.float32, torch.bfloat16):
                packed = cls.pack(plain, dtype, **made.options)
                found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in packed.items()}
                assert found == cls.layout(shapes, dtype, **made.options), (op, backend, module)
        self.compared += 1
        return made


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_are_known_without_weights(variant: str) -> None:
    pytest.importorskip("triton")
    model = make(torch.float32, **VARIANTS[variant])
    maker = Comparing(model.state_dict(), torch.float32, "reference")
    maker.configuration = optimize_for_inference(model, backend="reference").configuration
    OptimizedHiFuse(maker.configuration, maker)
    assert maker.compared == len(maker.made) > 20


@pytest.fixture(scope="module", params=["reference", "auto"])
def saved(request: Any, tmp_path_factory: Any) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("frozen") / "network.safetensors"
    network = optimize_for_inference(make(torch.float32), backend=request.param)
    network.save(path)
    return path, network.stem.backend


def change(path: Path, to: Path, edit: Change) -> Path:
    """The file with its configuration, ops and tensors edited."""
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = safetensors.torch.load_file(path)
    configuration, ops = json.loads(metadata["configuration"]), json.loads(metadata["ops"])
    edit(configuration, ops, tensors)
    metadata |= {"configuration": json.dumps(configuration), "ops": json.dumps(ops)}
    safetensors.torch.save_file(tensors, to, metadata)
    return to


def put(name: str, edit: Callable[[Tensor], Tensor]) -> Change:
    return lambda _configuration, _ops, tensors: tensors.update({name: edit(tensors[name]).contiguous()})


def say(**values: Any) -> Change:
    return lambda configuration, _ops, _tensors: configuration.update(values)


def spoil(tensor: Tensor) -> Tensor:
    tensor.flatten()[-1] = float("nan")
    return tensor


BLOCK = "layers2.blocks.1"
FALSE: dict[str, tuple[Change, str]] = {
    "a shorter tensor": (put("stem.bias", lambda x: x[:1]), r"stem\.bias must be torch.float32 \[2, 8\]|of stem do not fit"),
    "a longer one": (put("fu2.mlp.project_bias", lambda x: torch.cat([x, x])), r"fu2\.mlp"),
    "one that broadcasts": (put("fu1.W_l.conv_norm.bias", lambda x: x[:1]), r"fu1\.W_l\.conv_norm"),
    "half a packed weight": (put("fu3.mlp.expand", lambda x: x[: len(x) // 2]), r"fu3\.mlp"),
    "a table of another window": (put(f"{BLOCK}.attention.bias_table", lambda x: x[:25]), rf"{BLOCK}\.attention"),
    "another dtype": (put("fu2.mixer.weight", lambda x: x.bfloat16()), r"fu2\.mixer"),
    "integers": (put("fu2.gated_concat.scale", lambda x: x.int()), r"fu2\.gated_concat"),
    "NaN": (put("fu2.mixer.weight", spoil), r"fu2\.mixer\.weight has values that are not finite"),
    "a missing option of an op": (lambda c, o, t: o["stem"]["options"].pop("eps"), "eps of stem must be .*, got 'none'"),
    "one more option of an op": (lambda c, o, t: o["head"]["options"].update(more=1), "the option more of head must be absent"),
    "another option of an op": (
        lambda c, o, t: o[f"{BLOCK}.attention"]["options"].update(shift_size=0),
        rf"the option shift_size of {BLOCK}\.attention must be 2, got 0",
    ),
    "a scale of its own": (
        lambda c, o, t: o[f"{BLOCK}.attention"]["options"].update(scale=7.0),
        rf"the option scale of {BLOCK}\.attention must be 0\.5, got 7\.0",
    ),
    "no such backend": (lambda c, o, t: o["stem"].update(backend="abacus"), "backend must be one of"),
    "an op that is none": (lambda c, o, t: o.update(stem=3), "its configuration does not fit"),
    "ops by number": (lambda c, o, t: o["stem"].update(tensors=[1]), "missing: stem"),
    "a missing option": (lambda c, o, t: c.pop("qkv_bias"), "missing option 'qkv_bias'"),
    "far too many classes": (say(num_classes=10**400), "num_classes must be at most"),
    "other classes": (say(num_classes=7), r"num_classes must be 5, as its tensors say, got 7|head\.weight must be"),
    "another window": (say(window_size=3), "the option window_size of layers1.blocks.0.attention must be 3, got 4"),
    "no window": (say(window_size=99), "window_size must be from 1 to 16"),
    "other widths": (say(dims=[8, 12, 20, 2**30]), "tensors of .* do not fit|must be torch.float32|the option head_dim"),
    "more channels": (say(in_chans=2**31 - 1), r"stem\.weight must be|tensors of stem do not fit"),
    "endless depth": (say(depths=[2**31 - 1] * 4), r"the op layers1\.blocks\.1\.qkv is missing"),
    "no depth": (say(depths=None), "depths must be 4 integers, got None"),
    "maps of stage 9": (say(out_indices=[9]), "out_indices must be stages 0 to 3"),
    "a setting of nothing": (say(settings={"fu9.norm1.eps": 1e-3}), r"the network has no fu9\.norm1\.eps"),
    "a setting of another kind": (say(settings={"fu1.dim": 3}), r"settings must be of eps, .*fu1\.dim"),
    "a setting that its op has not": (say(settings={"fu1.norm3.eps": 0.5}), r"option eps of fu1\.gated_concat must be"),
    "a setting that is no number": (say(settings={"fu1.norm3.eps": None}), r"fu1\.norm3\.eps must be a positive number"),
    "no settings": (say(settings=None), "its configuration does not fit"),
    "another dtype of all": (say(dtype="bfloat16"), "torch.bfloat16|stem"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FALSE)
def test_false_files_are_refused_by_name(saved: Any, tmp_path: Path, kind: str) -> None:
    edit, message = FALSE[kind]
    path = change(saved[0], tmp_path / "false.safetensors", edit)
    with pytest.raises(CheckpointError, match=rf"^optimised network .*false\.safetensors: .*({message})") as caught:
        load_optimized(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["configuration", "ops"])
@pytest.mark.parametrize("text", ["[" * 10**5, "{", "null", "3", '{"a": NaN}'], ids=["nested", "cut", "null", "3", "NaN"])
def test_metadata_that_is_none(saved: Any, tmp_path: Path, key: str, text: str) -> None:
    with safe_open(saved[0], framework="pt") as opened:
        metadata = opened.metadata()
    path = tmp_path / "false.safetensors"
    for changed in ({**metadata, key: text}, {name: value for name, value in metadata.items() if name != key}):
        safetensors.torch.save_file(safetensors.torch.load_file(saved[0]), path, changed)
        with pytest.raises(CheckpointError, match=r"^optimised network .*false\.safetensors: its configuration does not fit"):
            load_optimized(path)


def test_what_is_no_frozen_network_is_named(saved: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"not written by OptimizedHiFuse.save; .*create_model_from_checkpoint"):
        load_optimized(path)
    path.write_bytes(gzip.compress(saved[0].read_bytes(), 1))
    with pytest.raises(CheckpointError, match="cannot be read: it is compressed with gzip"):
        load_optimized(path)
    with pytest.raises(CheckpointError, match="cannot be read: it is a folder"):
        load_optimized(tmp_path)
    with pytest.raises(CheckpointError, match="it is a network frozen for inference: load it with load_optimized"):
        load_checkpoint(saved[0])


def test_options_and_name_do_not_matter_to_a_true_file(saved: Any, tmp_path: Path) -> None:
    path = change(saved[0], tmp_path / "weights.pth", lambda *_: None)
    network = load_optimized(path)
    assert isinstance(network.options, HiFuseOptions)
    assert network.options.drop_rate == 0.0
    assert network(torch.zeros(2, 2, 40, 32)).shape == (2, 5)
