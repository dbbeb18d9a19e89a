"""Fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

#: An editable install finds submodules for any package of its name: code that begins with this finds those of its folder.
WITHOUT_EDITABLE = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"


def python(code: str, folder: Path = ROOT, **environment: str) -> str:
    """What a fresh interpreter prints that finds modules in `folder` first; AssertionError with its errors where it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
