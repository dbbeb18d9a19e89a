"""The frozen network: against the model in float64, its options, its memory, its refusals.

Its file: test_files; on Triton: test_triton.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hifuse_fast
from hifuse_fast import BackendError, OptimizedHiFuse, optimize_for_inference, use_backend
from hifuse_fast.inference.buffers import MapPool, Maps
from hifuse_fast.testing import relative_error
from tests.support.frozen import VARIANTS, image, make, run
from tests.support.kernels import kernels

KERNELS = kernels("prepare_linear", "native")
SIZES = [(2, 33, 70), (1, 1, 1), (1, 64, 32), (3, 96, 130)]


def exact(model: nn.Module) -> OptimizedHiFuse:
    return optimize_for_inference(model, torch.float64, backend="reference")


@pytest.fixture(scope="module")
def model() -> Any:
    return make(torch.float32)


@pytest.fixture(scope="module")
def network(model: Any) -> OptimizedHiFuse:
    return optimize_for_inference(model)


# ---- The same numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_folding_changes_nothing(options: dict[str, Any]) -> None:
    model = make(**options)
    frozen = exact(model)
    for size in SIZES:
        torch.testing.assert_close(frozen(image(*size)), run(model, image(*size)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_features(memory_format: torch.memory_format) -> None:
    model = make(features_only=True, out_indices=(3, 0, -3))
    frozen = optimize_for_inference(model, torch.float64, backend="reference", memory_format=memory_format)
    first = frozen(image(2, 40, 64))
    kept = [each.clone() for each in first]
    for actual, expected in zip(first, run(model, image(2, 40, 64)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        assert actual.is_contiguous(memory_format=memory_format)
    frozen(1 - image(2, 40, 64))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-5), (torch.bfloat16, 4e-2)], ids=str)
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_every_backend_is_close_to_float64(options: dict[str, Any], dtype: torch.dtype, allowed: float, backend: str) -> None:
    heads = {"num_heads": (1, 1, 2, 4), "window_size": 7}  # of 8 channels at least, which the kernels ask for
    model = make(**{**options, **heads, "dims": (8, 12, 20, 32)})
    frozen = optimize_for_inference(model.float(), dtype, backend=backend)
    x = image(2, 65, 90, torch.float32)
    out = frozen(x)
    assert out.dtype == dtype
    assert relative_error(out, run(model.double(), x.to(dtype).double())) < allowed


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_float16_on_a_cpu_is_left_to_pytorch(backend: str) -> None:
    model, x = make(num_heads=(1, 1, 2, 4)), image(2, 65, 90, torch.float32)
    frozen = optimize_for_inference(model.float(), torch.float16, backend=backend)
    assert {op.backend for name, op in frozen._made.items() if not name.endswith("attention")} == {"reference"}
    out = frozen(x)
    assert out.dtype == torch.float16
    assert relative_error(out, run(model.double(), x.half().double())) < 5e-3


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_direct_algorithms(model: Any, backend: str) -> None:
    auto = optimize_for_inference(make(torch.float32, num_heads=(1, 1, 2, 4)), backend=backend)
    direct = optimize_for_inference(make(torch.float32, num_heads=(1, 1, 2, 4)), backend=backend, algorithm="direct")
    x = image(dtype=torch.float32)
    torch.testing.assert_close(auto(x), direct(x), rtol=1e-4, atol=1e-4)
    assert {op.options.get("algorithm", "direct") for op in direct._made.values()} == {"direct"}
    assert (auto.configuration.algorithm, direct.configuration.algorithm) == ("auto", "direct")


def test_channel_gate_overrides(model: Any) -> None:
    other = make(channel_gate="double_sigmoid")
    frozen = optimize_for_inference(make(), torch.float64, backend="reference", channel_gate="double_sigmoid")
    torch.testing.assert_close(frozen(image()), run(other, image()), rtol=1e-10, atol=1e-10)


class Foreign(nn.Module):
    """A class of another package, as the official one: known by its state_dict alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)


def test_a_foreign_class_and_wrappers() -> None:
    model = make()
    expected = run(model, image())
    for wrapped in (Foreign(model), torch.compile(model), nn.Sequential()):
        if isinstance(wrapped, nn.Sequential):
            wrapped.add_module("module", model)  # as DistributedDataParallel names it
        torch.testing.assert_close(exact(wrapped.eval())(image()), expected, rtol=1e-10, atol=1e-10)


# ---- Calls ---------------------------------------------------------------------------------------------------------------


def test_batch_0(network: OptimizedHiFuse) -> None:
    assert network(image(0, 40, 33, torch.float32)).shape == (0, 5)
    maps = optimize_for_inference(make(torch.float32, features_only=True))(image(0, 64, 64, torch.float32))
    assert [list(each.shape) for each in maps] == [[0, 8, 16, 16], [0, 12, 8, 8], [0, 20, 4, 4], [0, 32, 2, 2]]


def test_images_of_any_strides_and_dtype(network: OptimizedHiFuse, model: Any) -> None:
    x = image(2, 64, 96, torch.float32)
    expected = network(x)
    assert torch.equal(network(x.contiguous(memory_format=torch.channels_last)), expected)
    assert torch.equal(network(x.transpose(2, 3).contiguous().transpose(2, 3)), expected)
    half = optimize_for_inference(model, torch.bfloat16)
    assert torch.equal(half(x), half(x.bfloat16()))
    assert half(x).dtype == torch.bfloat16


def test_grad_modes_autocast_and_training(network: OptimizedHiFuse) -> None:
    x = image(dtype=torch.float32)
    expected = network(x)
    with torch.inference_mode():
        fresh = optimize_for_inference(make(torch.float32), backend="reference")  # PyTorch's ops say when they may not write
        first = fresh(x)
    assert torch.equal(fresh(x), first)  # with the maps that inference mode made
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(x), expected)
    assert torch.equal(copy.deepcopy(network).train()(x), expected)


def test_results_do_not_alias_and_maps_are_reused(network: OptimizedHiFuse, monkeypatch: pytest.MonkeyPatch) -> None:
    x = image(dtype=torch.float32)
    first = network(x)
    kept = first.clone()
    allocated = []
    empty = torch.empty
    monkeypatch.setattr("hifuse_fast.inference.buffers.torch.empty", lambda *a, **k: allocated.append(a) or empty(*a, **k))
    assert torch.equal(network(x), kept)
    assert not torch.equal(network(1 - x), kept)
    assert torch.equal(first, kept)
    assert allocated == []


def test_stale_maps_do_not_show(network: OptimizedHiFuse) -> None:
    x = image(dtype=torch.float32)
    expected = network(x)
    assert network(torch.full_like(x, float("nan"))).isnan().all()
    assert torch.equal(network(x), expected)


def test_a_pool_is_bounded_and_survives_errors() -> None:
    pool = MapPool(torch.float32, torch.device("cpu"), most_shapes=2)
    lent: list[Maps] = []
    for shape in ((1,), (2,), (3,), (2,)):
        with pool.lend(*shape) as maps:
            lent.append(maps)
    assert lent[1] is lent[3]
    assert list(pool._idle) == [(3,), (2,)]
    with pytest.raises(RuntimeError, match="boom"), pool.lend(2) as maps:
        raise RuntimeError("boom")
    assert pool._idle[2,] == []
    with pool.lend(2) as one, pool.lend(2) as two:
        assert one is not two


def test_a_pool_may_be_asked_from_anywhere_within_a_call() -> None:
    """As a handler of a signal does, which runs between any two steps: here calls of other shapes and of the same one."""
    pool = MapPool(torch.float32, torch.device("cpu"), most_shapes=1)
    code = MapPool.lend.__wrapped__.__code__  # type: ignore[attr-defined]
    done: list[str] = []

    def handler(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not code:
            return None
        for shape in ((2,), (1,)):
            with pool.lend(*shape):
                done.append(event)
        return handler

    def call() -> None:
        sys.settrace(handler)
        try:
            for _ in range(3):
                with pool.lend(1), pool.lend(1):
                    pass
        finally:
            sys.settrace(None)
        done.append("end")

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(20)
    assert done[-1] == "end"
    assert len(done) > 50
    assert len(pool._idle) == 1


def test_maps_are_handed_out_once() -> None:
    maps = Maps(torch.float32, torch.device("cpu"))
    a, b = maps.take(2, 3, 4, 5), maps.take(2, 3, 4, 5)
    assert a.data_ptr() != b.data_ptr()
    maps.give(a)
    c = maps.take(1, 6, 4, 5)
    assert c.data_ptr() == a.data_ptr()
    assert c.shape == (1, 6, 4, 5)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_calls_from_many_threads(model: Any, backend: str) -> None:
    frozen = optimize_for_inference(model, backend=backend)
    images = [image(1 + i % 2, 32 + 32 * (i % 3), 32 + 32 * (i // 4), torch.float32) + i for i in range(8)]
    expected = [frozen(x) for x in images]
    failures: list[Any] = []

    def work(i: int) -> None:
        for _ in range(5):
            out = frozen(images[i])
            if not torch.equal(out, expected[i]):
                failures.append((i, out, expected[i]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 8])
def test_memory_does_not_grow(model: Any, threads: int) -> None:
    """A leak grows in every round of calls. From eight threads the gaps between their memory grow in some, from one in none."""
    frozen = optimize_for_inference(model)
    images = [image(1 + i % 3, 64, 64, torch.float32) for i in range(threads)]
    calls = 1000  # of a round

    def work(x: Tensor) -> None:
        for _ in range(calls // threads):
            frozen(x)

    def resident_mib() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    sizes = []
    with ThreadPoolExecutor(len(images)) as pool:
        for _ in range(5):
            list(pool.map(work, images))
            sizes.append(resident_mib())
    growths = [after - before for before, after in itertools.pairwise(sizes)]
    assert (max if threads == 1 else min)(growths) * 2**20 < 1024 * calls, sizes  # a KiB a call


BAD_IMAGES = [
    ([[1.0]], TypeError, "images must be a torch.Tensor, got list"),
    (torch.randn(2, 32, 32), ValueError, r"images must be \[B, 2, H, W\] with H and W at least 1, got \[2, 32, 32\]"),
    (torch.randn(1, 3, 32, 32), ValueError, r"images must be \[B, 2, H, W\]"),
    (torch.randn(1, 2, 0, 32), ValueError, r"images must be \[B, 2, H, W\]"),
    (torch.zeros(1, 2, 32, 32, dtype=torch.uint8), TypeError, "images must be torch.float32 .*, got torch.uint8"),
    (torch.randn(1, 2, 32, 32).double(), TypeError, "images must be torch.float32 .*, got torch.float64"),
    (torch.randn(1, 2, 32, 32, device="meta"), ValueError, "images must be on the network's device, cpu, got meta"),
]


@pytest.mark.parametrize(("images", "error", "message"), BAD_IMAGES, ids=[row[2][:40] for row in BAD_IMAGES])
def test_bad_images_are_named(network: OptimizedHiFuse, images: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        network(images)


# ---- What it holds -------------------------------------------------------------------------------------------------------


def test_the_model_is_untouched_and_independent() -> None:
    model = make(torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    frozen = optimize_for_inference(model, backend="reference")
    x = image(dtype=torch.float32)
    expected = frozen(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(frozen(x), expected)


def test_it_holds_packed_weights_only(network: OptimizedHiFuse) -> None:
    assert network.state_dict() == {}
    assert list(network.parameters()) == []
    assert not any(module.training for module in network.modules())


# ---- Refusals ------------------------------------------------------------------------------------------------------------


def broken(change: Any) -> nn.Module:
    model = make(torch.float32)
    change(model)
    return model


def spoil(model: Any) -> None:
    with torch.no_grad():
        model.fu2.W_l.conv.weight[0, 0] = float("inf")


def overflow(model: Any) -> None:
    with torch.no_grad():
        model.fu2.W_l.conv.weight.fill_(1e38)
        model.fu2.W_l.bn.weight.fill_(1e5)


def overflow_16(model: Any) -> None:
    """Of what float32 holds, and float16 does not."""
    with torch.no_grad():
        model.fu2.W_l.conv.weight.fill_(1e3)
        model.fu2.W_l.bn.weight.fill_(1e3)


def overflow_mixer(model: Any) -> None:
    with torch.no_grad():
        model.fu1.residual.conv1.conv.weight[0, 0] = 1e5


REFUSED: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (lambda: "hifuse_tiny", {}, TypeError, "model must be a torch.nn.Module, got str"),
    (lambda: nn.Linear(2, 2).eval(), {}, ValueError, "model must be HiFuse with the official state_dict: .*missing"),
    (lambda: broken(lambda m: m.train()), {}, ValueError, "model must be in eval mode, it is in training mode: call"),
    (lambda: broken(lambda m: m.fu3.spatial.train()), {}, ValueError, "its fu3.spatial is in training mode"),
    (lambda: broken(lambda m: setattr(m.fu1.W_l, "bn", None)), {}, ValueError, "fu1.W_l.bn is gone"),
    (lambda: broken(spoil), {}, ValueError, r"fu2\.W_l\.conv\.weight has values that are not finite"),
    (lambda: broken(overflow), {}, ValueError, "not finite once folded and in torch.float32: weight of fu2.W_l.conv_norm"),
    (lambda: make().to("meta"), {}, ValueError, "weights on one device, and not on meta, got meta"),
    (lambda: optimize_for_inference(make(torch.float32)), {}, TypeError, "got an OptimizedHiFuse: it is optimised already"),
    (make, {"dtype": torch.int16}, TypeError, "dtype must be one of .*, got torch.int16"),
    (make, {"dtype": torch.int8}, ValueError, "calibration must be given with dtype=torch.int8"),
    (make, {"dtype": torch.float16, "backend": "native"}, BackendError, "'native' cannot serve prepare_stem: .*"),
    (lambda: broken(overflow_16), {"dtype": torch.float16}, ValueError, "once folded and in torch.float16: weight of fu"),
    (lambda: broken(overflow_mixer), {"dtype": torch.float16}, ValueError, "in torch.float16: weight of fu1.mixer"),
    (make, {"dtype": "float32"}, TypeError, "dtype must be one of"),
    (make, {"dtype": torch.float64}, TypeError, "got torch.float64, which backend='reference' alone serves"),
    (make, {"dtype": torch.float64, "backend": "native"}, TypeError, "got torch.float64"),
    (make, {"backend": "mps"}, ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
    (make, {"backend": "triton"}, BackendError, "'triton' cannot serve prepare_(window_attention: head_dim|stem: it serves)"),
    (make, {"cuda_graphs": 1}, TypeError, "cuda_graphs must be True or False, got 1"),
    (make, {"algorithm": True}, ValueError, "algorithm must be one of auto, direct, got True"),
    (make, {"channel_gate": "none"}, ValueError, "channel_gate must be one of sigmoid, double_sigmoid, got 'none'"),
    (make, {"memory_format": torch.channels_last_3d}, TypeError, "memory_format must be torch.channels_last or "),
    (make, {"memory_format": "channels_last"}, TypeError, "memory_format must be torch.channels_last or "),
]  # fmt: skip


@pytest.mark.parametrize(("build", "options", "error", "message"), REFUSED, ids=[row[3][:50] for row in REFUSED])
def test_refusals_say_why(build: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optimize_for_inference(build(), **options)


def test_use_backend_counts_when_it_is_made() -> None:
    with use_backend("reference"):
        frozen = optimize_for_inference(make(torch.float32), torch.float64)
    assert {op.backend for op in frozen._made.values()} == {"reference"}
    assert hifuse_fast.OptimizedHiFuse is OptimizedHiFuse
