"""The settings of a training as flags of the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import click

from hifuse_fast.app.training.configuration import PATHS, Configuration, default_of, merge, parse_option

F = TypeVar("F", bound=Callable[..., Any])


def training_flags(command: F) -> F:
    """Give a command a flag for each setting but `data`; one that is not given is None, or empty."""
    for each in reversed(fields(Configuration)):
        if each.name != "data":
            command = _flag(each.name, default_of(each), each.metadata)(command)
    return command


def given(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that flags give; paths become absolute, for a run may go on from another folder."""
    settings = {name: value for name, value in flags.items() if value is not None and name != "network"}
    settings |= {name: os.path.abspath(settings[name]) for name in PATHS if settings.get(name)}
    return merge(settings, *({"network": parse_option(text)} for text in flags["network"]))


def _flag(name: str, default: Any, metadata: Mapping[str, Any]) -> Callable[[F], F]:
    flag, text = f"--{name.replace('_', '-')}", metadata["help"]
    shown = "" if default in ("", {}) or isinstance(default, bool) else f"  [default: {_shown(default)}]"
    options: dict[str, Any] = {"default": None, "help": text + shown}
    if isinstance(default, bool):
        return click.option(
            f"{flag}/--no-{flag[2:]}", name, **{**options, "help": f"{text}  [default: {'on' if default else 'off'}]"}
        )
    if isinstance(default, dict):
        return click.option(flag, name, multiple=True, metavar="NAME=VALUE", **{**options, "default": ()})
    if isinstance(default, tuple):
        return click.option(flag, name, nargs=len(default), type=(float,) * len(default), **options)
    choices = metadata.get("choices")
    return click.option(flag, name, type=click.Choice(choices) if choices else type(default), **options)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
