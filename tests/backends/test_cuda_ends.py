"""Both ends of the frozen network in CUDA: the patches of images and the mean over pixels, each against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hifuse_fast.backends.cuda import ends
from hifuse_fast.ops import prepare_stem
from tests.support.kernels import kernels, uniform
from tests.support.prepared import matrix, place

pytestmark = pytest.mark.gpu
only = pytest.mark.parametrize("kernel", kernels("prepare_stem", "cuda"))
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def patches(images: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    padded = F.pad(images.to(dtype), (0, 4 * width - images.shape[3], 0, 4 * height - images.shape[2]))
    return padded.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)


@only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 13, 18), (1, 1, 1, 1), (3, 5, 8, 4)], ids=str)
def test_patches_of_images_of_any_size_and_strides(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    x = place(kernel, uniform("images", *shape).float())
    _, _, height, width = shape
    size = (height + 3) // 4 + 1, (width + 3) // 4  # a whole line of patches beyond the images
    strided = F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2].transpose(0, 1).contiguous().transpose(0, 1)
    for images in (x, x.contiguous(memory_format=torch.channels_last), strided, x[:, :1].expand(x.shape), x.to(dtype)):
        assert torch.equal(ends.stem_patches(images, *size, dtype), patches(images, *size, dtype))


@only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 7, 7, 40), (1, 9, 11, 33), (3, 1, 1, 8), (0, 2, 3, 8)], ids=str)
def test_the_mean_is_exact(shape: tuple[int, ...], dtype: torch.dtype, kernel: str) -> None:
    x = place(kernel, uniform("x", *shape), dtype)
    assert torch.equal(ends.mean(x), x.double().mean((1, 2), keepdim=True).float().to(dtype))


@only
def test_the_mean_of_nan_is_nan_and_images_are_apart(kernel: str) -> None:
    x = place(kernel, uniform("x", 3, 5, 9, 40), torch.float32)
    expected = ends.mean(x)
    x[1, 2, 3, 7] = torch.nan
    found = ends.mean(x)
    assert found[1, 0, 0, 7].isnan()
    assert found.isnan().sum() == 1
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert torch.equal(ends.mean(x[2:]), expected[2:])


@only
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_stem_pads_and_casts_as_the_network_wants_it(dtype: torch.dtype, kernel: str) -> None:
    weights = {"weight": torch.stack([matrix(f"weight{i}", 8, 2, 4, 4) for i in (0, 1)])}
    weights |= {name: uniform(name, 2, 8) for name in ("bias", "scale", "shift")}
    op = prepare_stem(**place(kernel, weights), eps=(1e-6, 1e-5), dtype=dtype, backend=kernel)
    x = place(kernel, uniform("images", 2, 2, 9, 14).float())
    expected = op(F.pad(x, (0, 2, 0, 3)).to(dtype))
    out = [torch.full_like(each, torch.nan) for each in expected]
    op.forward(x, out=tuple(out))  # past the checks of a user's calls
    assert all(torch.equal(a, e) for a, e in zip(out, expected, strict=True))
