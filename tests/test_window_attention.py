"""Window attention: the reference against its definition, and every kernel against the reference."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

import hifuse_fast
from hifuse_fast.gpu import configs
from hifuse_fast.ops import window_attention
from hifuse_fast.testing import assert_within_rule, nan_poisoned_empty, relative_error
from tests.functional import DEVICE, DTYPES, kernels

DEVICES = {"native": torch.device("cpu")}  # of a backend's tensors, where it is not DEVICE
NATIVE = kernels("window_attention", "native", device=DEVICES["native"])
TRITON = kernels("window_attention", "triton")
KERNELS = [*NATIVE, *TRITON]


def device_of(backend: str) -> torch.device:
    return DEVICES.get(backend, DEVICE)


@dataclass(frozen=True)
class Case:
    """A call, named by what it is there for."""

    name: str
    shape: tuple[int, int, int]  # B, H, W
    num_heads: int
    head_dim: int
    window_size: int = 7
    shift_size: int = 0
    scale: float | None = None
    bias: bool = True

    def options(self) -> dict[str, object]:
        return {
            "num_heads": self.num_heads,
            "window_size": self.window_size,
            "shift_size": self.shift_size,
            "scale": self.scale,
        }

    def tensors(self, dtype: torch.dtype, backend: str = "native") -> tuple[list[Tensor | None], Tensor]:
        """[qkv, bias_table, qkv_bias] and a gradient of the output, on the device of a backend."""
        generator = torch.Generator().manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device_of(backend), dtype)

        channels = self.num_heads * self.head_dim
        qkv = normal(*self.shape, 3 * channels)
        table = normal((2 * self.window_size - 1) ** 2, self.num_heads)
        return [qkv, table, normal(3 * channels) if self.bias else None], normal(*self.shape, channels)


CASES = [
    Case("stage 3 of HiFuse, shifted", (2, 14, 14), 12, 32, shift_size=3),
    Case("one shifted window, as stage 4", (2, 7, 7), 2, 32, shift_size=3),
    Case("padded both ways, odd everything", (2, 9, 13), 3, 17, shift_size=2, scale=0.3),
    Case("smaller than a window", (3, 5, 3), 2, 8, shift_size=6),
    Case("padding without a bias", (1, 8, 6), 1, 32, shift_size=3, bias=False),
    Case("largest window and a long row of scores", (1, 18, 17), 2, 24, window_size=16, shift_size=5),
    Case("largest head", (1, 4, 8), 2, 128, window_size=4, shift_size=1),
    Case("window of one token", (1, 3, 5), 2, 16, window_size=1),
    Case("window of two", (2, 5, 4), 1, 9, window_size=2, shift_size=1, scale=2.0),
    Case("many windows to a chunk", (2, 33, 40), 1, 8, window_size=3, shift_size=1),
]
# What Triton's interpreter, where there is no GPU, computes in a second or two.
TRITON_CASES = [
    Case("as stage 3 of HiFuse, shifted", (1, 14, 14), 1, 32, shift_size=3),
    replace(CASES[1], num_heads=1),
    Case("padded both ways, odd everything", (2, 6, 9), 2, 17, window_size=5, shift_size=2, scale=0.3),
    replace(CASES[3], num_heads=1),
    *CASES[4:5],
    Case("two blocks of tokens to a window", (1, 8, 11), 1, 24, window_size=9, shift_size=4, scale=0.5),
    *CASES[6:9],
]
SERVED = [
    pytest.param(case, kernel.values[0], marks=kernel.marks, id=f"{kernel.values[0]}, {case.name}")
    for kernel, cases in ((NATIVE[0], CASES), (TRITON[0], TRITON_CASES))
    for case in cases
]
SLOW_CASES = [
    Case(f"h{heads} d{dim} m{window} s{shift} {height}x{width}", (2, height, width), heads, dim, window, shift)
    for heads, dim, window in itertools.product((1, 3), (8, 20, 32, 48, 96), (2, 5, 7, 8, 12))
    for height, width in ((13, 22), (7, 7), (14, 10))
    for shift in {0, window // 2, window - 1}
]


def named(cases: list[Case]) -> object:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def run(case: Case, tensors: list[Tensor | None], grad: Tensor, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """The output and the gradients of qkv, the table and the bias."""
    leaves = [None if t is None else t.to(dtype).requires_grad_() for t in (None if t is None else t.clone() for t in tensors)]
    out = window_attention(leaves[0], leaves[1], qkv_bias=leaves[2], backend=backend, **case.options())
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad(out, wanted, grad.to(dtype), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True))]


def check_parity(case: Case, dtype: torch.dtype, kernel: str) -> None:
    tensors, grad = case.tensors(dtype, kernel)
    with nan_poisoned_empty():
        actual = run(case, tensors, grad, kernel, dtype)
    eager = run(case, tensors, grad, "reference", dtype)
    exact = run(case, tensors, grad, "reference", torch.float64)
    for name, *results in zip(("out", "dqkv", "dtable", "dqkv_bias"), actual, eager, exact, strict=False):
        assert_within_rule(*results, what=name)


# ---- The definition ----------------------------------------------------------------------------------------------------


def by_definition(case: Case, qkv: Tensor, table: Tensor, qkv_bias: Tensor | None) -> Tensor:
    """Token by token, from the text: which keys a query sees, at which offset, in which region. Slow, shares no code."""
    batch, height, width = case.shape
    m, shift, heads, dim = case.window_size, case.shift_size, case.num_heads, case.head_dim
    padded_height, padded_width = math.ceil(height / m) * m, math.ceil(width / m) * m
    padding = torch.zeros(3 * heads * dim, dtype=qkv.dtype) if qkv_bias is None else qkv_bias
    scale = dim**-0.5 if case.scale is None else case.scale

    def part(at: int, length: int) -> int:  # of the mask, for a place on the rolled axis
        return 0 if at < length - m else 1 if at < length - shift else 2

    out = torch.zeros(batch, height, width, heads * dim, dtype=qkv.dtype)
    for b, y, x in itertools.product(range(batch), range(height), range(width)):
        ry, rx = (y - shift) % padded_height, (x - shift) % padded_width  # where the roll brings the token
        keys = []
        for ky, kx in itertools.product(range(ry // m * m, ry // m * m + m), range(rx // m * m, rx // m * m + m)):
            sy, sx = (ky + shift) % padded_height, (kx + shift) % padded_width
            token = qkv[b, sy, sx] if sy < height and sx < width else padding
            row = (ry - ky + m - 1) * (2 * m - 1) + rx - kx + m - 1
            same = part(ky, padded_height) == part(ry, padded_height) and part(kx, padded_width) == part(rx, padded_width)
            keys.append((token, table[row], 0.0 if same or shift == 0 else -100.0))
        query = qkv[b, y, x].reshape(3, heads, dim)[0]
        k, v = (torch.stack([token.reshape(3, heads, dim)[i] for token, _, _ in keys]) for i in (1, 2))
        mask = torch.tensor([mask for _, _, mask in keys], dtype=qkv.dtype)
        scores = scale * (k * query).sum(-1) + torch.stack([bias for _, bias, _ in keys]) + mask[:, None]
        out[b, y, x] = (scores.softmax(0)[:, :, None] * v).sum(0).flatten()
    return out


@named(CASES[1:5] + CASES[6:9])
def test_reference_is_the_definition(case: Case) -> None:
    tensors, _ = case.tensors(torch.float64)
    expected = by_definition(case, *tensors)
    actual = window_attention(tensors[0], tensors[1], qkv_bias=tensors[2], backend="reference", **case.options())
    assert relative_error(actual, expected) < 1e-12


# ---- Kernels -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "kernel"), SERVED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_obeys_the_rule(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check_parity(case, dtype, kernel)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named(SLOW_CASES)
def test_kernel_obeys_the_rule_everywhere(case: Case, dtype: torch.dtype, kernel: str) -> None:
    check_parity(case, dtype, kernel)


@contextlib.contextmanager
def small_tiles() -> Iterator[None]:
    """Within the block, Triton programs take several windows each, in blocks of 16 tokens."""
    config = {"block": 16, "programs": 2, "num_warps": 4, "num_stages": 1}
    with configs.override("window_attention_forward", config), configs.override("window_attention_backward", config):
        yield


TILED_CASES = [
    Case("one block", (2, 6, 8), 1, 8, window_size=3, shift_size=1, scale=0.5),
    Case("two blocks", (1, 6, 14), 1, 8, window_size=5, shift_size=2),
]


@pytest.mark.parametrize("kernel", TRITON)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@named(TILED_CASES)
def test_programs_of_several_windows(case: Case, dtype: torch.dtype, kernel: str) -> None:
    with small_tiles():
        check_parity(case, dtype, kernel)


@pytest.mark.parametrize("kernel", TRITON)
@named(TILED_CASES)
def test_equal_inputs_give_equal_bits(case: Case, kernel: str) -> None:
    tensors, grad = case.tensors(torch.bfloat16, kernel)
    with small_tiles():
        once, again = (run(case, tensors, grad, kernel, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("kernel", NATIVE)
@named(CASES)
def test_float64_is_exact(case: Case, kernel: str) -> None:
    tensors, grad = case.tensors(torch.float64)
    actual = run(case, tensors, grad, kernel, torch.float64)
    for a, e in zip(actual, run(case, tensors, grad, "reference", torch.float64), strict=True):
        assert relative_error(a, e) < 1e-12


@pytest.mark.parametrize("kernel", NATIVE)
@pytest.mark.parametrize("case", [CASES[2], CASES[8]], ids=lambda case: case.name)
def test_gradcheck(case: Case, kernel: str) -> None:
    small = Case("gradcheck", (1, *case.shape[1:]), 1, 8, case.window_size, case.shift_size, case.scale)
    tensors, _ = small.tensors(torch.float64)
    leaves = [t.requires_grad_() for t in tensors if t is not None]

    def call(qkv: Tensor, table: Tensor, qkv_bias: Tensor) -> Tensor:
        return window_attention(qkv, table, qkv_bias=qkv_bias, backend=kernel, **small.options())

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_strides(kernel: str) -> None:
    """Views: permuted maps, a slice of channels, a broadcast batch; and a gradient that is an expanded scalar."""
    case = Case("", (2, 3, 5), 1, 16, window_size=3, shift_size=1)
    (qkv, table, bias), _ = case.tensors(torch.float32, kernel)
    views = {
        "NCHW memory": qkv.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "W and H swapped": qkv.transpose(1, 2).contiguous().transpose(1, 2),
        "slice of channels": torch.cat([qkv, qkv], -1)[..., : qkv.shape[-1]],
        "every other row": torch.stack([qkv, qkv], 2).flatten(1, 2)[:, ::2],
        "expanded batch": qkv[:1].expand(2, -1, -1, -1),
    }
    for name, view in views.items():
        leaf = view.detach().requires_grad_()
        out = window_attention(leaf, table, qkv_bias=bias, backend=kernel, **case.options())
        out.sum().backward()
        plain = view.contiguous().requires_grad_()
        expected = window_attention(plain, table, qkv_bias=bias, backend=kernel, **case.options())
        expected.backward(torch.ones_like(expected))
        assert out.is_contiguous(), name
        assert torch.equal(out, expected), name
        assert torch.equal(leaf.grad, plain.grad), name


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_batch_0(backend: str) -> None:
    (_, table, bias), _ = Case("", (1, 1, 1), 2, 16).tensors(torch.float32, backend)
    qkv = torch.empty(0, 9, 8, 96, device=table.device, requires_grad=True)
    table.requires_grad_()
    out = window_attention(qkv, table, num_heads=2, shift_size=3, qkv_bias=bias, backend=backend)
    assert out.shape == (0, 9, 8, 32)
    out.sum().backward()
    assert torch.equal(table.grad, torch.zeros_like(table))


@pytest.mark.parametrize("kernel", NATIVE)
def test_the_same_bits_whatever_the_threads(kernel: str) -> None:
    case = Case("", (3, 23, 19), 2, 24, shift_size=3)
    tensors, grad = case.tensors(torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(run(case, tensors, grad, kernel, torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_extreme_values(kernel: str) -> None:
    """Scores of +-10000 neither overflow nor lose rows; a NaN or an infinity stays within its window."""
    qkv = 100 * torch.randn(1, 7, 14, 96, generator=torch.Generator().manual_seed(0)).to(device_of(kernel))
    table = torch.zeros(169, 1, device=qkv.device)
    exact = window_attention(qkv.double(), table.double(), num_heads=1, scale=1.0, backend="reference")
    out = window_attention(qkv, table, num_heads=1, scale=1.0, backend=kernel)
    assert_within_rule(out, window_attention(qkv, table, num_heads=1, scale=1.0, backend="reference"), exact)
    for poison in (math.nan, math.inf):
        bad = qkv.clone()
        bad[0, 2, 3, 40] = poison  # of a key
        spread = window_attention(bad, table, num_heads=1, scale=1.0, backend=kernel)
        assert torch.equal(spread[:, :, 7:], out[:, :, 7:])
        if math.isnan(poison):
            assert spread[:, :, :7].isnan().all()


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_parameters_may_stay_float32(backend: str) -> None:
    """Under autocast the map is bfloat16 and the parameters are float32: each gets a gradient of its own dtype."""
    case = TRITON_CASES[2]
    (qkv, table, bias), grad = case.tensors(torch.float32, backend)
    leaves = [qkv.bfloat16().requires_grad_(), table.requires_grad_(), bias.requires_grad_()]
    out = window_attention(leaves[0], leaves[1], qkv_bias=leaves[2], backend=backend, **case.options())
    out.backward(grad.bfloat16())
    assert out.dtype == torch.bfloat16
    assert [leaf.grad.dtype for leaf in leaves] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_offsets_past_2_31(kernel: str) -> None:
    """Two images more than 2^31 elements apart, in memory that is reserved but hardly touched."""
    case = Case("", (2, 7, 7), 1, 32)
    (qkv, table, _), _ = case.tensors(torch.bfloat16, kernel)
    distance = 2**31 + 4096
    far = torch.empty(distance + qkv[0].numel(), dtype=torch.bfloat16, device=qkv.device)
    view = far.as_strided(qkv.shape, (distance, *qkv.stride()[1:]))
    view.copy_(qkv)
    assert torch.equal(
        window_attention(view, table, num_heads=1, backend=kernel), window_attention(qkv, table, num_heads=1, backend=kernel)
    )


# ---- Autograd, compile, export -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS)
def test_autograd_only_where_a_gradient_is_wanted(kernel: str) -> None:
    (qkv, table, _), _ = Case("", (1, 7, 7), 1, 32).tensors(torch.float32, kernel)
    assert window_attention(qkv, table, num_heads=1, backend=kernel).grad_fn is None
    table.requires_grad_()
    with torch.no_grad():
        assert window_attention(qkv, table, num_heads=1, backend=kernel).grad_fn is None
    with torch.inference_mode():
        assert window_attention(qkv, table, num_heads=1, backend=kernel).is_inference()
    out = window_attention(qkv, table, num_heads=1, backend=kernel)
    assert type(out.grad_fn).__name__ == "_WindowAttentionBackward"
    (grad,) = torch.autograd.grad(out.sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("kernel", NATIVE)
def test_opcheck(kernel: str) -> None:
    case = CASES[2]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        (qkv, table, bias), grad = case.tensors(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        args = (qkv, table.to(wide), bias.to(wide))
        rest = (case.num_heads, case.window_size, case.shift_size, 0.3)
        torch.library.opcheck(torch.ops.hifuse_fast.window_attention.default, (*args, *rest))
        torch.library.opcheck(torch.ops.hifuse_fast.window_attention.default, (*args[:2], None, *rest))
        torch.library.opcheck(torch.ops.hifuse_fast.window_attention_backward.default, (grad, *args, *rest))


class Attend(torch.nn.Module):
    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.table = torch.nn.Parameter(torch.randn(49, 2))
        self.bias = torch.nn.Parameter(torch.randn(96))

    def forward(self, qkv: Tensor) -> Tensor:
        options = {"num_heads": 2, "window_size": 4, "shift_size": 3, "backend": self.backend}
        return window_attention(qkv, self.table, qkv_bias=self.bias, **options).relu()


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
def test_compile_and_export_see_through_it(backend: str) -> None:
    torch.manual_seed(0)
    module = Attend(backend).to(device_of(backend))
    qkv = torch.randn(1, 5, 8, 96, device=device_of(backend), requires_grad=True)
    expected = module(qkv)
    expected_grads = torch.autograd.grad(expected.sum(), [qkv, *module.parameters()])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(qkv)
    torch.testing.assert_close(compiled, expected)
    for actual, grad in zip(torch.autograd.grad(compiled.sum(), [qkv, *module.parameters()]), expected_grads, strict=True):
        torch.testing.assert_close(actual, grad)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="aot_eager")(qkv), expected)
    exported = torch.export.export(module, (qkv.detach(),)).module()
    torch.testing.assert_close(exported(qkv.detach()), expected)


@pytest.mark.parametrize("backend", ["auto", "reference", *KERNELS])
def test_meta_device(backend: str) -> None:
    qkv = torch.empty(2, 9, 8, 96, device="meta", dtype=torch.bfloat16)
    out = window_attention(qkv, torch.empty(169, 2, device="meta"), num_heads=2, shift_size=3, backend=backend)
    assert (out.device.type, out.shape, out.dtype) == ("meta", (2, 9, 8, 32), torch.bfloat16)


# ---- Choice of backend, and bad input ------------------------------------------------------------------------------------


def good() -> dict[str, object]:
    return {"qkv": torch.randn(1, 7, 7, 96), "bias_table": torch.randn(169, 2), "num_heads": 2, "qkv_bias": torch.randn(96)}


BAD = [
    ("qkv", torch.randn(7, 7, 96), ValueError, r"qkv must be \[B, H, W, 3C\], got 3 dimensions"),
    ("qkv", torch.randn(1, 0, 7, 96), ValueError, "qkv must have a map of at least 1 x 1"),
    ("qkv", torch.randint(9, (1, 7, 7, 96)), TypeError, "qkv must be float32, bfloat16, float16 or float64, got torch.int64"),
    ("qkv", torch.randn(1, 7, 7, 97), ValueError, "97 is no multiple of 3 [*] 2"),
    ("qkv", None, TypeError, "qkv must be a torch.Tensor, got NoneType"),
    ("bias_table", torch.randn(168, 2), ValueError, r"bias_table must be .* = \[169, 2\], got \[168, 2\]"),
    ("bias_table", torch.randn(169, 2).double(), TypeError, "bias_table must be torch.float32 like qkv"),
    ("bias_table", torch.randn(169, 2, device="meta"), ValueError, "bias_table must be on the device of qkv, cpu, got meta"),
    ("qkv_bias", torch.randn(95), ValueError, r"qkv_bias must be \[3C\] = \[96\], got \[95\]"),
    ("qkv_bias", [0.0] * 96, TypeError, "qkv_bias must be a torch.Tensor, got list"),
    ("num_heads", 5, ValueError, "96 is no multiple of 3 [*] 5"),
    ("num_heads", 0, ValueError, "num_heads must be at least 1, got 0"),
    ("num_heads", 2.0, TypeError, "num_heads must be an integer, got 2.0"),
    ("num_heads", True, TypeError, "num_heads must be an integer, got True"),
    ("window_size", math.nan, TypeError, "window_size must be an integer, got nan"),
    ("window_size", 17, ValueError, "window_size must be from 1 to 16, got 17"),
    ("window_size", 0, ValueError, "window_size must be from 1 to 16, got 0"),
    ("shift_size", 7, ValueError, "shift_size must be from 0 to window_size - 1 = 6, got 7"),
    ("shift_size", -1, ValueError, "shift_size must be from 0"),
    ("scale", math.nan, ValueError, "scale must be a finite number or None, got nan"),
    ("scale", "1", ValueError, "scale must be a finite number or None, got '1'"),
    ("dropout_p", 1.5, ValueError, "dropout_p must be from 0 to 1, got 1.5"),
    ("dropout_p", math.nan, ValueError, "dropout_p must be from 0 to 1, got nan"),
    ("backend", "cuda", ValueError, "backend must be one of auto, reference, native, triton, got 'cuda'"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD, ids=[f"{bad[0]} {i}" for i, bad in enumerate(BAD)])
def test_bad_input_is_named(name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        window_attention(**{**good(), name: value})


@pytest.mark.parametrize("kernel", NATIVE)
def test_the_dispatcher_op_refuses_what_would_touch_foreign_memory(kernel: str) -> None:
    qkv, table, bias = torch.randn(1, 7, 7, 96), torch.randn(169, 2), torch.randn(96)
    op = torch.ops.hifuse_fast.window_attention
    for args, message in [
        ((qkv[0], table, bias, 2, 7, 0, 1.0), "qkv must be"),
        ((qkv.long(), table, bias, 2, 7, 0, 1.0), "qkv must be float32"),
        ((qkv, table, bias, 0, 7, 0, 1.0), "channels"),
        ((qkv, table, bias, 2, 17, 0, 1.0), "window_size"),
        ((qkv, table, bias, 2, 7, 7, 1.0), "shift_size"),
        ((qkv, table[:9], bias, 2, 7, 0, 1.0), "bias_table"),
        ((qkv, table.double(), bias, 2, 7, 0, 1.0), "bias_table"),
        ((qkv, table.T.contiguous().T, bias, 2, 7, 0, 1.0), "bias_table must be contiguous"),
        ((qkv, table, bias[:9], 2, 7, 0, 1.0), "qkv_bias"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            op(*args)
    with pytest.raises(RuntimeError, match="grad must be"):
        torch.ops.hifuse_fast.window_attention_backward(qkv, qkv, table, bias, 2, 7, 0, 1.0)


def test_a_named_backend_that_cannot_serve_says_why() -> None:
    with pytest.raises(hifuse_fast.BackendError, match="'triton' cannot serve window_attention: "):
        window_attention(**{**good(), "qkv": good()["qkv"].double()}, backend="triton")


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_the_kernel_cannot_serve(kernel: str) -> None:
    (qkv, table, bias), _ = Case("", (1, 7, 7), 2, 16).tensors(torch.float32, kernel)
    with pytest.raises(hifuse_fast.BackendError, match="dropout"):
        window_attention(qkv, table, num_heads=2, qkv_bias=bias, dropout_p=0.5, backend=kernel)
    with pytest.raises(hifuse_fast.BackendError, match="head_dim must be from 8 to 128, got 4"):
        window_attention(qkv[..., :24], table, num_heads=2, backend=kernel)
    assert window_attention(**good(), dropout_p=0.5).shape == (1, 7, 7, 32)  # auto goes to the reference


def test_dropout_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    arguments = good()
    exact = window_attention(**arguments, backend="reference")
    drawn = torch.stack([window_attention(**arguments, dropout_p=0.3, backend="reference") for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn.mean(0) - exact).abs().max() < 0.25 * exact.abs().max()
    assert torch.equal(window_attention(**arguments, dropout_p=1.0, backend="reference"), torch.zeros_like(exact))
