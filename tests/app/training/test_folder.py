"""folder.py: one process writes a run; what a kill left unfinished goes; the log and the curves."""

import subprocess
import sys

import pytest

from hifuse_fast.app.training.folder import COLUMNS, RunFolder

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
)


def test_one_process_writes_and_a_kill_undoes_its_lock(tmp_path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        pass
    unfinished = [folder.path / ".0123456789ab.tmp", folder.state.parent / ".456789abcdef.tmp"]
    for path in unfinished:
        path.write_text("half")
    command = [sys.executable, "-c", HOLD, str(folder.state.parent / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="run is being written by another process"), folder.locked():
            pass
        assert all(path.exists() for path in unfinished)
        other.kill()
    with folder.locked():
        assert not any(path.exists() for path in unfinished)


def test_the_log_is_written_whole(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_log([])
    assert folder.log.read_text() == ",".join(COLUMNS) + "\n"
    assert not folder.curves.exists()
    rows = [dict.fromkeys(COLUMNS, 0.1 + epoch) | {"epoch": epoch, "best": int(epoch == 1)} for epoch in (1, 2)]
    rows[1]["val_auroc"] = float("nan")
    folder.write_log(rows)
    assert folder.log.read_text().splitlines()[1:] == [
        "1,1.1,1.1,1.1,1.1,1.1,1.1,1.1,1.1,1",
        "2,2.1,2.1,2.1,2.1,2.1,2.1,2.1,nan,0",
    ]
    assert folder.curves.read_bytes().startswith(b"\x89PNG")
