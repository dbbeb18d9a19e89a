"""HiFuseOptions: what a network is, said once."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from hifuse_fast import HiFuse, HiFuseOptions, create_model

NARROW: dict[str, Any] = {
    "num_classes": 5, "dims": [8, 12, 20, 32], "depths": (1, 2, 1, 1), "num_heads": (2, 3, 5, 4), "drop_path_rate": 0.25,
}  # fmt: skip


def test_the_network_keeps_them_and_they_make_it_again() -> None:
    with torch.device("meta"):
        model = HiFuse(**NARROW, channel_gate="double_sigmoid")
        again = HiFuse(**model.options.to_dict())
    assert model.options == again.options == HiFuseOptions(**NARROW, channel_gate="double_sigmoid")
    assert hash(model.options) == hash(again.options)
    assert model.options.dims == (8, 12, 20, 32)
    assert model.options.conv_depths == (1, 2, 1, 1)
    assert again.weight_shapes == model.weight_shapes == {name: x.shape for name, x in model.state_dict().items()}
    assert (model.num_classes, model.in_chans, model.dims, model.num_features) == (5, 3, (8, 12, 20, 32), 32)


def test_json_and_back() -> None:
    options = HiFuseOptions(**NARROW)
    values = json.loads(json.dumps(options.to_dict()))
    assert HiFuseOptions.from_dict(values) == options
    for changed, message in (
        ({**values, "more": 1}, "unknown option 'more'"),
        ({key: value for key, value in values.items() if key != "depths"}, "missing option 'depths'"),
        ([1], "options must be a mapping, got list"),
        ({**values, "dims": None}, "dims must be 4 integers, got None"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            HiFuseOptions.from_dict(changed)


def test_reset_classifier_changes_them() -> None:
    model = create_model("hifuse_tiny", **NARROW, device="meta")
    for classes in (0, 3):
        model.reset_classifier(classes)
        assert model.options.num_classes == model.num_classes == classes
        assert model.weight_shapes == {name: x.shape for name, x in model.state_dict().items()}
    with pytest.raises(ValueError, match="num_classes must be at least 0"):
        model.reset_classifier(-1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 10**400}, "num_classes must be at most 2147483647, got a number of 1329 bits"),
        ({"depths": (1, 1, 1, 2**40)}, r"depths\[3\] must be at most"),
        ({"window_size": 17}, "window_size must be from 1 to 16"),
        ({"drop_rate": float("nan")}, "drop_rate must be at least 0 and below 1"),
        ({"channel_gate": "none"}, "channel_gate must be one of"),
        ({"num_heads": (5, 6, 12, 24)}, r"num_heads\[0\] must divide the width 96"),
    ],
)
def test_they_check_themselves(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiFuseOptions(**options)
    assert dataclasses.replace(HiFuseOptions(), conv_depths=(1, 1, 1, 1)).depths == (2, 2, 2, 2)
