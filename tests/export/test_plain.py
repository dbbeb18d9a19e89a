"""Networks and programs that an export refuses, and those that it takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hifuse_fast import HiFuse, optimize_for_inference, use_backend
from hifuse_fast.backends.native import library
from hifuse_fast.export.plain import check_plain
from tests.support.frozen import make, narrow


class Adapter(nn.Linear):
    """As packages for adapters have them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


def _replace(model: Any) -> None:
    model.layers1.blocks[0].fc1 = Adapter(8, 8)


def _set_forward(model: Any) -> None:
    model.fu1.se.forward = lambda x: x


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "replaced": (_replace, r"layers1.blocks.0.fc1 has a forward of its own, of .*Adapter"),
    "hook": (lambda m: m.stages[0].register_forward_hook(lambda *_: None), r"stages.0 has a forward hook"),
    "hook of the network": (lambda m: m.register_forward_pre_hook(lambda *_: None), r"it has a forward pre-hook"),
    "pruned": (lambda m: prune.l1_unstructured(m.fu2.W_l.conv, "weight", 0.5), r"fu2.W_l.conv has a forward pre-hook"),
    "weight norm": (
        lambda m: parametrizations.weight_norm(m.layers1.blocks[0].fc1),
        r"fc1 has a parametrization of weight",
    ),
    "forward": (_set_forward, r"fu1.se has a forward of its own"),
    "method": (lambda m: setattr(m, "forward_head", lambda x: x), "it has a forward_head of its own"),
    "added": (lambda m: setattr(m.layers1, "downsample", nn.Tanh()), r"layers1 has a .*Tanh for its downsample"),
    "one less": (lambda m: m.stages[0].__delitem__(0), r"stages.0 must have the modules \['0', '1'\], got \['0'\]"),
    "gone": (lambda m: setattr(m.fu2.W_l, "bn", None), r"fu2.W_l.bn is gone"),
    "compiled": (lambda m: setattr(m, "fu2", torch.compile(m.fu2)), "fu2 is compiled"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_changed_network_is_refused_by_what_was_changed(change: Callable[[Any], Any], message: str) -> None:
    model = make(torch.float32)
    change(model)
    with pytest.raises(ValueError, match=f"{message}.*; torch.onnx.export"):
        check_plain(model.eval())


def test_a_class_of_its_own_and_global_hooks_are_refused() -> None:
    class Mine(HiFuse):
        def forward_head(self, x: Any, pre_logits: bool = False) -> Any:
            return x

    with pytest.raises(ValueError, match=r"forward_head of its own, of .*Mine"):
        check_plain(Mine(5, dims=(8, 12, 20, 32), num_heads=(1, 1, 1, 1)).eval())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        with pytest.raises(ValueError, match="all modules have a forward hook"):
            check_plain(make())
    finally:
        handle.remove()


def test_wrapped_networks_and_new_classifiers_are_taken() -> None:
    model = make(torch.float32)
    assert check_plain(nn.DataParallel(model)) is model
    model.add_module("criterion", nn.CrossEntropyLoss())
    assert check_plain(model.eval()) is model
    model.conv_head = nn.Sequential(nn.Dropout(0.5), nn.Linear(32, 9)).eval()
    assert check_plain(model) is model
    assert check_plain(nn.SyncBatchNorm.convert_sync_batchnorm(make()))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(1, 1), TypeError, "must be a HiFuse, got Linear"),
        ("tiny.pth", TypeError, "must be a HiFuse, got str"),
        (make().train(), ValueError, "it is in training mode"),
        (optimize_for_inference(make(torch.float32), backend="reference"), TypeError, "frozen OptimizedHiFuse"),
    ],
    ids=["Linear", "str", "training", "frozen"],
)
def test_what_is_no_network_with_its_weights_is_refused(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_plain(model)


@pytest.mark.skipif(library.lib is None, reason=str(library.why_missing))
def test_a_program_with_our_ops_is_refused_by_the_name_of_the_op() -> None:
    attn = narrow().layers1.blocks[0].float()
    program = torch.export.export(attn, (torch.zeros(1, 8, 8, 8),))
    with pytest.raises(ValueError, match=r"the op hifuse_fast.fused_window_attention.*use_backend"):
        check_plain(program)
    with use_backend("reference"):
        plain = torch.export.export(attn, (torch.zeros(1, 8, 8, 8),))
    with pytest.raises(TypeError, match=r"without our ops, which torch.onnx.export takes"):
        check_plain(plain)
