"""Data parallel and sharded training on CPUs give what the official network gives, in values and in two steps of training."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from hifuse_fast import HiFuse, use_backend
from tests.support.modules import UNUSED, assert_same, narrow, official, some_images, steps, two_steps

pytestmark = pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="there is no gloo")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """Of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def without_unused(model: HiFuse) -> HiFuse:
    """Its unused weights ask for no gradient, so that DistributedDataParallel need not look for them."""
    for name, p in model.named_parameters():
        if re.fullmatch(UNUSED, name.rpartition(".")[0]):
            p.requires_grad_(False)
    return model


def check_distributed(find: bool) -> None:
    images = some_images() + dist.get_rank()
    model = narrow() if find else without_unused(narrow())
    with official():
        expected = two_steps(DistributedDataParallel(copy.deepcopy(model), find_unused_parameters=find), images)
    assert_same(two_steps(DistributedDataParallel(model, find_unused_parameters=find), images), expected)


@pytest.mark.parametrize("find", [True, False])
def test_distributed_data_parallel(group: None, find: bool) -> None:
    check_distributed(find)


def worker(rank: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    check_distributed(find=False)
    dist.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel_of_two_processes(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (str(tmp_path / "store"),), nprocs=2)


def compiled_steps(rank: int, store: str, inside: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    images, model = some_images() + rank, without_unused(narrow(depths=(1, 1, 1, 1), conv_depths=(1, 1, 1, 1))).train()
    expected = steps(DistributedDataParallel(copy.deepcopy(model)), images)
    compiled = partial(torch.compile, backend="aot_eager")
    found = steps(DistributedDataParallel(compiled(model)) if inside else compiled(DistributedDataParallel(model)), images)
    assert_same(found, expected)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("inside", [False, True])
def test_compiled_in_two_processes(inside: bool, tmp_path: Path) -> None:
    """The wrapper compiled, whose buckets cut the graph, or the network within it."""
    multiprocessing.spawn(compiled_steps, (str(tmp_path / "store"), inside), nprocs=2)


def half_of_a_batch(rank: int, store: str, backend: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    images, dtype = some_images(4), torch.float32 if backend == "triton" else torch.float64
    images = images.to(dtype)
    alone, shared = (without_unused(narrow().to(dtype)) for _ in range(2))  # in eval mode: batch norms look at no other image
    with official():
        expected = alone(images)
        expected.square().mean().backward()
    with use_backend(backend) if backend != "native" else contextlib.nullcontext():  # "auto" is native here
        parallel = DistributedDataParallel(shared)  # kept: it brings the gradients together
        out = parallel(images[2 * rank : 2 * rank + 2])
        out.square().mean().backward()
    found, wanted = ([p.grad for p in model.parameters() if p.grad is not None] for model in (shared, alone))
    tolerance = 1e-4 if backend == "triton" else 1e-8
    assert_same([out.detach(), *found], [expected.detach()[2 * rank : 2 * rank + 2], *wanted], tolerance)  # type: ignore[list-item]
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "triton", "reference"])
def test_two_processes_give_what_one_gives_for_the_whole_batch(backend: str, tmp_path: Path) -> None:
    multiprocessing.spawn(half_of_a_batch, (str(tmp_path / "store"), backend), nprocs=2)


def whole(model: HiFuse, **options: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    fully_shard(model, **options)


def by_stage(model: HiFuse, **options: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for i in range(4):
        for stage in (model.stages[i], getattr(model, f"layers{i + 1}"), getattr(model, f"fu{i + 1}")):
            fully_shard(stage, **options)
    fully_shard(model, **options)


def by_layer(model: HiFuse, **options: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for module in list(model.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
            fully_shard(module, **options)
    fully_shard(model, **options)


def plain(found: list[Tensor]) -> list[Tensor]:
    return [x.full_tensor() if hasattr(x, "full_tensor") else x for x in found]


@pytest.mark.parametrize(
    "shard", [pytest.param(whole, marks=pytest.mark.slow), pytest.param(by_stage, marks=pytest.mark.slow), by_layer]
)
def test_fully_sharded(group: None, shard: Any) -> None:
    from torch.distributed.device_mesh import init_device_mesh

    images, model = some_images(), narrow()
    with official():
        expected = two_steps(copy.deepcopy(model), images)
    shard(model, mesh=init_device_mesh("cpu", (1,)))
    assert_same(plain(two_steps(model, images)), expected)


def test_mixed_precision_of_the_embedding(group: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float32)
    images, model = some_images().float(), narrow().float()
    expected = copy.deepcopy(model)
    for each in (model, expected):
        fully_shard(each.patch_embed, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)
    with official():
        logits = expected(images)
    torch.testing.assert_close(model(images), logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits, narrow().float()(images), rtol=1e-6, atol=0)
    model(images).square().sum().backward()
    assert model.patch_embed.proj.weight.grad is not None
