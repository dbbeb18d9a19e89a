"""configuration.py and flags.py: one list of settings; the file, the flags, and their checks."""

import math
from dataclasses import fields

import pytest
from click.testing import CliRunner

from hifuse_fast.app.training.configuration import (
    Configuration,
    differences,
    merge,
    parse_option,
    read_toml,
    write_toml,
)
from hifuse_fast.app.training.flags import given
from hifuse_fast.commands.train import train_command


def test_the_defaults_are_the_official_recipe():
    c = Configuration()
    assert (c.epochs, c.batch_size, c.lr, c.weight_decay, c.image_size, c.preprocess().resize) == (
        100,
        32,
        1e-4,
        1e-2,
        224,
        256,
    )
    assert (c.warmup_epochs, c.warmup_factor, c.end_factor, c.min_scale, c.flip) == (1, 1e-3, 1e-2, 0.08, True)
    off = (c.label_smoothing, c.focal_gamma, c.clip, c.ema, c.rotation, c.colour_jitter, c.accumulate - 1, c.save_every)
    assert set(off) == {0}
    assert (c.amp, c.best, c.mean, c.std) == ("off", "accuracy", (0.5,) * 3, (0.5,) * 3)


def test_all_settings_go_through_toml_and_back(tmp_path):
    c = Configuration(
        data=str(tmp_path / 'a "quoted" größe\n\x7f'), lr=1e-30, seed=2**62, flip=False, mean=(0.1, 0.2, 1 / 3),
        network={"dims": (8, 16, 24, 32), "drop_rate": 0.1, "qkv_bias": False, "mixer": "dense"},
    )  # fmt: skip
    write_toml(tmp_path / "c.toml", c)
    assert Configuration.from_dict(read_toml(tmp_path / "c.toml")) == c


def test_paths_in_a_file_are_relative_to_it(tmp_path):
    (tmp_path / "c.toml").write_text('data = "images"\ninit = "../x.pth"')
    assert read_toml(tmp_path / "c.toml") == {"data": str(tmp_path / "images"), "init": str(tmp_path.parent / "x.pth")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown setting 'epoch'; did you mean epochs?"),
        ("epochs = 0", "epochs must be at least 1, got 0"),
        ("epochs = 1.5", "epochs must be an integer, got 1.5"),
        ("lr = true", "lr must be a finite number, got True"),
        ("lr = nan", "lr must be a finite number"),
        ('lr = "x"', "lr must be a finite number, got 'x'"),
        ("ema = 1.0", "ema must be below 1"),
        ("bits = 17", "bits must be at most 16"),
        ("freeze = 1", "freeze must be True or False"),
        ('amp = "half"', "amp must be one of off, bfloat16, float16, got 'half'"),
        ("mean = [1]", "mean must be 3 numbers"),
        ("window = [40, 0.5]", "window must be a finite centre and a width of at least 1, got 40.0 0.5"),
        ("std = [0.5, 0, 0.5]", "std must be positive"),
        ("network = 3", "network must be a table of options"),
        ("[network]\nnum_classes = 3", "network must not have num_classes"),
        ("class_weights = true\nweighted_sampler = true", "take one of them"),
        ("epochs = ", "Invalid value"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, text, message):
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ValueError, match=f"configuration .*c.toml: .*{message}"):
        read_toml(tmp_path / "c.toml")


def test_flags_win_and_options_of_the_network_are_merged():
    file = {"epochs": 5, "lr": 0.1, "network": {"dims": [8, 16, 24, 32], "drop_rate": 0.1}}
    flags = {"epochs": 7, "lr": None, "network": ["drop_rate=0.2", "channel_gate = double_sigmoid", "depths=[1,1,1,1]"]}
    assert merge(file, given(flags)) == {
        "epochs": 7, "lr": 0.1,
        "network": {"dims": [8, 16, 24, 32], "drop_rate": 0.2, "channel_gate": "double_sigmoid", "depths": [1, 1, 1, 1]},
    }  # fmt: skip
    for wrong in ("drop_rate", "=3", " "):
        with pytest.raises(ValueError, match="--network must be NAME=VALUE"):
            parse_option(wrong)


def test_every_setting_is_a_flag_and_in_the_help():
    text = CliRunner().invoke(train_command, ["--help"]).output
    for each in fields(Configuration)[1:]:
        assert f"--{each.name.replace('_', '-')}" in text


def test_differences_are_named_with_both_values():
    old, new = Configuration(epochs=3), Configuration(epochs=4, network={"drop_rate": 0.1})
    assert differences(old, new) == {
        "epochs": "epochs was 3 and is 4", "network": "network was {} and is {'drop_rate': 0.1}",
    }  # fmt: skip
    assert math.isclose(new.lr, 1e-4)
