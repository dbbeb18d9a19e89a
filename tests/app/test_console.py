"""console.py: how a command ends when it is told to stop, or when nobody listens any more."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hifuse_fast.app import console
from hifuse_fast.app.output import Row
from tests.support.cli import CLASSES, ENVIRONMENT, save_noise


@pytest.fixture(scope="module", autouse=True)
def signals_as_in_a_terminal():
    """A shell lets background jobs ignore SIGINT, and nohup SIGHUP. Commands that tests start would ignore them too."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_block_once(number):
    """A terminal that closes sends several; the clean-up must not be stopped by the second."""
    before = signal.getsignal(number)
    cleaned = []

    def work():
        with console.stoppable():
            try:
                signal.raise_signal(number)
            finally:
                signal.raise_signal(number)
                cleaned.append(True)

    with pytest.raises(console.Stopped) as stopped:
        work()
    assert stopped.value.number == number
    assert cleaned
    assert signal.getsignal(number) is before


def test_a_clean_up_that_hangs_can_be_stopped_later(monkeypatch):
    monkeypatch.setattr(console, "_GRACE_S", 0.0)
    stops = []
    with console.stoppable():
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGTERM)
            except KeyboardInterrupt as stop:
                stops.append(stop.number)
    assert stops == [signal.SIGTERM] * 2


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.stoppable():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_of_a_program_can_run_a_command():
    ran = []

    def work():
        with console.stoppable():
            ran.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ran


def test_a_terminal_that_closes_stops_the_command_with_its_code(tmp_path):
    """Its output fails from then on, which must hide neither the clean-up nor the reason."""
    import pty

    code = (
        "import fcntl, termios, time, click\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"  # the terminal is this session's
        "from hifuse_fast.app.console import Commands, progress\n"
        "from hifuse_fast.files import writing\n"
        "@click.group(cls=Commands)\n"
        "def main(): pass\n"
        "@main.command()\n"
        "def work():\n"
        "    with writing('out.csv') as file, progress(9, shown=True) as on_progress:\n"
        "        on_progress(1)\n"
        "        file.write('a row')\n"
        "        print('ready', flush=True)\n"
        "        open('ready', 'x').close()\n"
        "        time.sleep(60)\n"
        "main()\n"
    )
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "work"], stdin=slave, stdout=slave, stderr=slave, cwd=tmp_path, env=ENVIRONMENT,
        start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.close(master)
    assert process.wait(60) == 129
    assert [path.name for path in tmp_path.iterdir()] == ["ready"]


def test_a_reader_that_went_away_is_no_error():
    """As in `| head`: no message, and the code that other programs end with."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "hifuse_fast.cli", "info"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_messages_that_nobody_reads_do_not_end_the_command(monkeypatch):
    """As in `hifuse-fast predict scans -o result.csv 2>&1 | head -1`."""

    def nobody(*_, **__):
        raise BrokenPipeError

    muted = []
    monkeypatch.setattr("click.echo", nobody)
    monkeypatch.setattr(console, "_mute", muted.append)
    console.note("scans/1.png: broken")
    assert muted == [2]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (PermissionError(13, "Permission denied", "x.csv"), "x.csv: Permission denied"),
        (OSError("in words"), "in words"),
    ],
)
def test_a_reason_of_the_system_is_said_without_its_number(run, picture, checkpoint, monkeypatch, error, said):
    def predict(*_, **__):
        raise error

    monkeypatch.setattr("hifuse_fast.app.predict.predict", predict)
    assert run("predict", picture, "--checkpoint", checkpoint).stderr == f"Error: {said}\n"


def test_a_line_stays_one_and_harmless():
    assert console.one_line("a\nb\x1b[2J\udcff") == "a b\\x1b[2J\\udcff"


# ---- The rows that are done


def stopping(reason, after=2):
    """A `predict` that ends in the middle."""

    def predict(files, *_, **__):
        for path in files[:after]:
            yield Row(path, CLASSES[0], 1.0, (1.0, 0.0, 0.0))
        if isinstance(reason, signal.Signals):
            signal.raise_signal(reason)
        raise reason("it was too much")

    return predict


def test_a_defect_keeps_its_traceback_and_has_a_code_of_its_own(run, picture, checkpoint, monkeypatch):
    monkeypatch.setattr("hifuse_fast.app.predict.predict", stopping(KeyError, after=0))
    result = run("predict", picture, "--checkpoint", checkpoint, "--backend", "reference")
    assert result.exit_code == 70
    assert result.stderr.startswith("Traceback (most recent call last):\n")
    assert result.stderr.endswith("\nKeyError: 'it was too much'\n")


@pytest.mark.parametrize(
    ("reason", "code", "message"),
    [
        (signal.SIGINT, 130, "Interrupted: {}.\n"),
        (signal.SIGTERM, 143, "Interrupted: {}.\n"),
        (signal.SIGHUP, 129, "Interrupted: {}.\n"),
        (ValueError, 2, "Error: it was too much; {}\n"),
        (RuntimeError, 70, "RuntimeError: it was too much\n{}\n"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_rows_that_are_done_are_kept_and_named(run, tmp_path, checkpoint, monkeypatch, reason, code, message, suffix):
    folder, out, kept = tmp_path / "images", tmp_path / f"out.{suffix}", tmp_path / f"out.{suffix}.partial"
    paths = [save_noise(folder / name, 8, 8, 0) for name in ("0.png", "1.png", "2.png")]
    out.write_text("the old results")
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr("hifuse_fast.app.predict.predict", stopping(reason))
    result = run("predict", folder, "--checkpoint", checkpoint, "-o", out, "--backend", "reference")
    assert result.exit_code == code, result.stderr
    assert result.stderr.endswith(message.format(f"2 of 3 rows are kept in {kept}, and --resume goes on after them"))
    assert out.read_text() == "the old results"
    rows = [json.loads(line) for line in kept.read_text().splitlines()][1:]
    assert [row["path"] for row in rows] == [str(path) for path in paths[:2]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", *sorted([out.name, kept.name])]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


@pytest.mark.parametrize(
    ("options", "after", "message"),
    [
        ([], 1, "Interrupted.\n"),  # there are rows on stdout, so it would be wrong to say that nothing was written
        (["-o", "/dev/null"], 1, "Interrupted.\n"),
        (["-o", "out.csv"], 0, "Interrupted: nothing was written.\n"),
    ],
)
def test_interrupted_says_that_nothing_was_written_where_that_is_so(
    run, picture, checkpoint, monkeypatch, options, after, message
):
    monkeypatch.chdir(picture.parent)
    monkeypatch.setattr("hifuse_fast.app.predict.predict", stopping(signal.SIGINT, after))
    result = run("predict", picture.name, "--checkpoint", checkpoint, *options, "--backend", "reference")
    assert (result.exit_code, result.stderr) == (130, message)
    assert len(result.stdout.splitlines()) == (0 if options else 2)
    assert list(picture.parent.iterdir()) == [picture]
