"""Packages that one command needs and others do not."""

from __future__ import annotations

import importlib
from typing import Any


def needs(module: str, extra: str) -> Any:
    """The module, imported.

    Raises:
        ValueError: it cannot be imported; the message names the extra of this package that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ValueError(f"{package} cannot be imported ({error}): pip install 'hifuse_fast[{extra}]'") from None
