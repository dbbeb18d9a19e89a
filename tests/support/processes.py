"""Fresh interpreters, that have imported torch and nothing of the package: seconds of each process, for one that is shared."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from tests.support.paths import ROOT

#: An editable install finds submodules for any package of its name: code that begins with this finds those of its folder.
WITHOUT_EDITABLE = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"

# It has one thread until a child computes. A child reads its code from a file, so that nothing waits at a full pipe.
_PARENT = """
import json, os, sys
import torch

for line in sys.stdin:
    request = json.loads(line)
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(request[name], os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    sys.path[0] = ""
    sys.argv = ["-c", *request["arguments"]]
    exec(compile(request["code"], "<string>", "exec"), {"__name__": "__main__"})
    sys.exit()
"""


@functools.cache
def _parent() -> subprocess.Popen[str]:
    """The process that has imported torch, and has a child for each question."""
    return subprocess.Popen([sys.executable, "-c", _PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def run(
    code: str, *arguments: object, folder: Path = ROOT, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a process does that finds modules in `folder` first, given `arguments`.

    Its environment is that of the tests, or `environment`. torch was imported before, so that it has not seen `environment`.
    """
    parent = _parent()
    assert parent.stdin is not None
    assert parent.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as errors:
        request = {
            "code": code, "arguments": list(map(str, arguments)), "folder": str(folder),
            "environment": dict(os.environ) if environment is None else environment,
            "stdin": os.devnull, "stdout": out.name, "stderr": errors.name,
        }  # fmt: skip
        parent.stdin.write(json.dumps(request) + "\n")
        parent.stdin.flush()
        return subprocess.CompletedProcess(["-c"], int(parent.stdout.readline()), _read(out), _read(errors))


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def python(code: str, folder: Path = ROOT, **environment: str) -> str:
    """What a process prints that finds modules in `folder` first; AssertionError with its errors where it fails."""
    done = run(code, folder=folder, environment={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def module(name: str) -> str:
    """Code that runs a module as `python -m` does."""
    return f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
