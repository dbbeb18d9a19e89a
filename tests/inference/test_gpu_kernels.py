"""The frozen network on the kernels of GPUs, there, interpreted or emulated: against the model, `algorithm=`, its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hifuse_fast import BackendError, load_optimized, optimize_for_inference
from hifuse_fast.backends import tables
from hifuse_fast.inference.configuration import ALGORITHMS
from hifuse_fast.testing import assert_within_rule
from tests.support.emulation import launched
from tests.support.frozen import image, narrow, run
from tests.support.kernels import DEVICE, kernels, needs_gpu

pytestmark = pytest.mark.gpu
TRITON, CUDA = (kernels("prepare_linear", backend) for backend in ("triton", "cuda"))
VARIANTS: dict[str, dict[str, Any]] = {"dense": {}, "depthwise": {"mixer": "depthwise", "channel_gate": "double_sigmoid"}}
ONE_KERNEL = {"fused": 1, "BLOCK_M": 32, "BLOCK_H": 32, "num_warps": 4, "num_stages": 1}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FAST = {"dense": torch.float16, "depthwise": torch.bfloat16}  # of the variants, the others are slow in the interpreter


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which PyTorch allows cuDNN in float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("backend", TRITON + CUDA)
@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        pytest.param(options, dtype, marks=[] if dtype == FAST.get(name) else [pytest.mark.slow])
        for name, options in VARIANTS.items()
        for dtype in DTYPES
    ],
    ids=str,
)
def test_it_is_close_to_float64(options: dict[str, Any], dtype: torch.dtype, backend: str) -> None:
    model, x = narrow(**options).to(DEVICE), image(1, 32, 64, torch.float32).to(DEVICE)
    expected = run(model, x.to(dtype).double())
    frozen, eager = (optimize_for_inference(model.float(), dtype, backend=each) for each in (backend, "reference"))
    assert {op.backend for op in frozen._made.values()} == {backend}
    with launched() as kernels:
        actual = frozen(x)
    if backend == "cuda" and dtype != torch.float32:
        blocks = sum(frozen.configuration.conv_depths), sum(frozen.configuration.depths)
        assert (kernels.count("local_block"), kernels.count("global_block")) == blocks
        assert not {"depthwise_norm_forward", "window_attention_forward"} & set(kernels)
    assert actual.dtype == dtype
    if dtype == torch.float32:
        torch.testing.assert_close(actual, eager(x), rtol=1e-5, atol=1e-5)
    else:
        assert_within_rule(actual, eager(x), expected)


@pytest.mark.parametrize("backend", TRITON)
def test_the_mlp_in_one_kernel(backend: str) -> None:
    """Of widths that the tables leave to the vendor's products."""
    model, x = narrow().to(DEVICE), image(1, 32, 64, torch.float32).to(DEVICE)
    expected = run(model, x.half().double())
    frozen, eager = (optimize_for_inference(model.float(), torch.float16, backend=each) for each in (backend, "reference"))
    with tables.override("mlp_forward", ONE_KERNEL):
        assert_within_rule(frozen(x), eager(x), expected)


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_either_wish_is_served_by_the_direct_convolution(algorithm: str, dtype: torch.dtype, backend: str) -> None:
    frozen = optimize_for_inference(narrow().to(DEVICE), dtype, backend=backend, algorithm=algorithm)
    mixers = [stage.fusion.mixer for stage in frozen.stages]
    assert {(op.backend, op.options["algorithm"]) for op in mixers} == {(backend, "direct")}
    assert frozen.configuration.algorithm == algorithm


@pytest.mark.parametrize("backend", TRITON)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.float16], ids=str)
def test_round_trip(dtype: torch.dtype, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, x = tmp_path / "network.safetensors", image(2, 32, 32, torch.float32).to(DEVICE)
    frozen = optimize_for_inference(narrow().to(DEVICE), dtype, backend=backend)
    frozen.save(path)
    loaded = load_optimized(path, device=DEVICE)
    assert (loaded.dtype, loaded.device, loaded.configuration) == (dtype, frozen.device, frozen.configuration)
    for _ in range(3 if DEVICE.type == "cuda" else 1):  # eager, and as a graph
        assert torch.equal(loaded(x), frozen(x))
    monkeypatch.setattr("hifuse_fast.backends.triton.launch.INTERPRETED", False)
    refused = r"'triton' cannot serve prepare_stem: it serves CUDA tensors.* on this machine, for cpu"
    with pytest.raises(BackendError, match=refused):
        load_optimized(path)


@pytest.mark.parametrize("backend", TRITON)
def test_export_is_refused(backend: str) -> None:
    """Its launches would be missing in the program, which would return memory of any content."""
    frozen = optimize_for_inference(narrow().float().to(DEVICE), backend=backend)
    with pytest.raises(BackendError, match=r"'triton' cannot serve torch.export: freeze the network with 'native'"):
        torch.export.export(frozen, (image(1, 32, 32, torch.float32).to(DEVICE),))


@needs_gpu
def test_auto_takes_it_on_a_gpu() -> None:
    for dtype in DTYPES:
        frozen = optimize_for_inference(narrow().to(DEVICE), dtype)
        assert {op.backend for op in frozen._made.values()} == {"triton"}
