"""Window attention as it is called: under autograd, compiled and exported, by a chosen backend, and with bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import hifuse_fast
from hifuse_fast.backends.cuda.launch import DTYPES, multiprocessors
from hifuse_fast.ops import window_attention
from tests.support.attention import CASES, CUDA, KERNELS, NATIVE, Case
from tests.support.kernels import device_of

pytestmark = pytest.mark.gpu
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
    assert type(out.grad_fn).__name__ == "_FusedOpBackward"


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
        torch.library.opcheck(torch.ops.hifuse_fast.window_attention_backward.default, (grad, *args, *rest, True, True))
        torch.library.opcheck(torch.ops.hifuse_fast.window_attention_backward.default, (grad, *args, *rest, False, True))


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
    torch._dynamo.reset()  # what other backends compiled counts to the limit of recompilations
    torch.manual_seed(0)
    module = Attend(backend).to(device_of(backend))
    qkv = torch.randn(1, 5, 8, 96, device=device_of(backend), requires_grad=True)
    expected = module(qkv)
    expected_grads = torch.autograd.grad(expected.sum(), [qkv, *module.parameters()])
    for compiler in ("eager", "aot_eager"):
        compiled = torch.compile(module, fullgraph=True, backend=compiler)(qkv)
        torch.testing.assert_close(compiled, expected)
        found = torch.autograd.grad(compiled.sum(), [qkv, *module.parameters()])
        for actual, grad in zip(found, expected_grads, strict=True):
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
    ("backend", "mps", ValueError, "backend must be one of auto, reference, native, triton, cuda, got 'mps'"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), BAD, ids=[f"{bad[0]} {i}" for i, bad in enumerate(BAD)])
def test_bad_input_is_named(name: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        window_attention(**{**good(), name: value})


@pytest.mark.parametrize("backend", ["reference", *KERNELS])
def test_fake_tensors(backend: str) -> None:
    """Shapes and dtypes without data, of the result and of the gradients; nothing is launched."""
    with FakeTensorMode():
        qkv = torch.empty(2, 9, 8, 96, dtype=torch.bfloat16, device=device_of(backend), requires_grad=True)
        table = torch.empty(169, 2, device=qkv.device, requires_grad=True)
        bias = torch.empty(96, device=qkv.device, requires_grad=True)
        out = window_attention(qkv, table, num_heads=2, shift_size=3, qkv_bias=bias, backend=backend)
        grads = torch.autograd.grad(out.sum(), [qkv, table, bias])
    assert (out.shape, out.dtype) == ((2, 9, 8, 32), torch.bfloat16)
    assert [(g.shape, g.dtype) for g in grads] == [(x.shape, x.dtype) for x in (qkv, table, bias)]


@pytest.mark.parametrize("kernel", CUDA)
def test_opcheck_of_what_is_launched(kernel: str) -> None:
    """The operator that a compiled graph has for a launch, called as the forward calls it."""
    (qkv, table, bias), _ = Case("", (1, 3, 4), 1, 8, window_size=3).tensors(torch.float32, kernel)
    out = torch.empty_like(qkv[..., :8], memory_format=torch.contiguous_format)
    sizes = [DTYPES[qkv.dtype], *qkv.shape[:3], 1, 8, 3, 0, multiprocessors(qkv.device)]
    given = ("window_attention_forward", sizes, [8**-0.5], [qkv, table, bias], [out])
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.hifuse_fast.cuda_launch, given, test_utils=checks)
    expected = window_attention(qkv, table, num_heads=1, window_size=3, qkv_bias=bias, backend=kernel)
    torch.ops.hifuse_fast.cuda_launch(*given)
    assert torch.equal(out, expected)


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
        torch.ops.hifuse_fast.window_attention_backward(qkv, qkv, table, bias, 2, 7, 0, 1.0, True, True)


@pytest.mark.parametrize("kernel", NATIVE)
def test_the_op_with_a_place_for_its_result_writes_there_alone(kernel: str) -> None:
    """Into a map with gaps between its rows, which stay; and into no map that does not fit."""
    qkv, table, bias = torch.randn(2, 5, 9, 96), torch.randn(49, 2), torch.randn(96)
    op, options = torch.ops.hifuse_fast.window_attention_out, (2, 4, 1, 0.3)
    room = torch.full((2, 5, 11, 32), 7.0)
    assert op(qkv, table, bias, room[:, :, 1:10], *options) is None
    assert torch.equal(room[:, :, 1:10], torch.ops.hifuse_fast.window_attention(qkv, table, bias, *options))
    assert (room[:, :, [0, 10]] == 7.0).all()
    for out in (room, room[0], room[:, :, 1:10].double(), room[:1, :, 1:10], room[:, :, 1:10, ::2], room[:, :, :9, :31]):
        with pytest.raises(RuntimeError, match="out must be"):
            op(qkv, table, bias, out, *options)


def test_a_named_backend_that_cannot_serve_says_why() -> None:
    with pytest.raises(hifuse_fast.BackendError, match="'triton' cannot serve window_attention: "):
        window_attention(**{**good(), "qkv": good()["qkv"].double()}, backend="triton")


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_the_kernel_cannot_serve(kernel: str) -> None:
    (qkv, table, bias), _ = Case("", (1, 7, 7), 2, 16).tensors(torch.float32, kernel)
    with pytest.raises(hifuse_fast.BackendError, match="dropout"):
        window_attention(qkv, table, num_heads=2, qkv_bias=bias, dropout_p=0.5, backend=kernel)
    with pytest.raises(hifuse_fast.BackendError, match=r"head_dim( must be from 8 to 128, got)? 4"):
        window_attention(qkv[..., :24], table, num_heads=2, backend=kernel)
    assert window_attention(**good(), dropout_p=0.5).shape == (1, 7, 7, 32)  # auto goes to the reference


@pytest.mark.parametrize("kernel", CUDA)
def test_a_head_without_a_cuda_kernel(kernel: str) -> None:
    (qkv, table, _), _ = Case("", (1, 7, 7), 1, 20).tensors(torch.float32, kernel)
    with pytest.raises(hifuse_fast.BackendError, match="'cuda' cannot serve window_attention: head_dim 20 has no kernel"):
        window_attention(qkv, table, num_heads=1, backend=kernel)


def test_dropout_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    arguments = good()
    exact = window_attention(**arguments, backend="reference")
    drawn = torch.stack([window_attention(**arguments, dropout_p=0.3, backend="reference") for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    assert (drawn.mean(0) - exact).abs().max() < 0.25 * exact.abs().max()
    assert torch.equal(window_attention(**arguments, dropout_p=1.0, backend="reference"), torch.zeros_like(exact))
