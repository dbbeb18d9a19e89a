"""A run that is killed, stopped or fails, and is resumed, comes to the same bits as one that nothing disturbed."""

import copy
import os
import random
import signal
import time

import pytest

from tests.support.training import EXACT, contents, finish, flags, start


def resume(tmp_path, data, **settings):
    """Bring a run to its end, whether it was begun or not; what it comes to."""
    begun = (tmp_path / "run" / "config.toml").exists()
    arguments = ["train", data, "-o", tmp_path / "run", *flags(**EXACT, **settings), *(["--resume"] if begun else [])]
    assert finish(start(arguments, tmp_path / "errors")) == 0, (tmp_path / "errors").read_text()
    return contents(tmp_path / "run")


def without_workers(found):
    """A copy of contents, without what says how many workers there were."""
    found = copy.deepcopy(found)
    for name, metadata in found.items():
        for record in metadata.values() if name.endswith("metadata") else ():
            record.get("configuration", {}).pop("workers", None)
    return found


def kill_and_resume(tmp_path, data, undisturbed, kills, workers):
    expected, seconds = undisturbed
    draw = random.Random(seed := time.time_ns())
    arguments = ["train", data, "-o", tmp_path / "run", *flags(**EXACT, workers=workers)]
    killed = 0
    for _ in range(2 * kills):
        begun = (tmp_path / "run" / "config.toml").exists()
        process = start([*arguments, *(["--resume"] if begun else [])], tmp_path / "errors")
        process.join(draw.uniform(0, seconds))
        process.kill()
        killed += finish(process) == -signal.SIGKILL
        if killed == kills:
            break
    assert without_workers(resume(tmp_path, data, workers=workers)) == without_workers(expected), f"seed {seed}"


def test_killed_at_random_moments(tmp_path, data, undisturbed):
    kill_and_resume(tmp_path, data, undisturbed, 3, workers=2)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("repetition", range(7))
def test_killed_at_many_random_moments(tmp_path, data, undisturbed, workers, repetition):
    kill_and_resume(tmp_path, data, undisturbed, 3, workers)


# Files take their places in this order: splits, configuration, log; last and state after step 2; of the first epoch best, last,
# state, log and curves; last and state after step 4; of the second epoch best, where it is, last, state, log and curves.
SOME = [("killed in a write", 4)]
ALL = [(name, number) for name in ("killed before a rename", "killed after a rename") for number in range(1, 18)]
ALL += [("killed in a write", number) for number in range(1, 11)]
OTHERS = [pytest.param(fault, marks=pytest.mark.slow) for fault in ALL if fault not in SOME]


@pytest.mark.parametrize("fault", [*SOME, *OTHERS], ids=str)
def test_killed_while_files_are_written(tmp_path, data, undisturbed, fault):
    process = start(["train", data, "-o", tmp_path / "run", *flags(**EXACT)], tmp_path / "errors", fault)
    assert finish(process) in (-signal.SIGKILL, 0)  # 0 where there were not so many files
    assert process.exitcode or fault not in SOME
    if process.exitcode:
        assert resume(tmp_path, data) == undisturbed[0]
    assert not [*(tmp_path / "run").glob(".*"), *(tmp_path / "run" / "state").glob(".*")]


@pytest.mark.slow
def test_no_space_for_a_checkpoint(tmp_path, data, undisturbed):
    process = start(["train", data, "-o", tmp_path / "run", *flags(**EXACT)], tmp_path / "errors", ("no space", 5))
    assert finish(process) == 2
    error = (tmp_path / "errors").read_text().splitlines()[-1]
    assert error.startswith(f"Error: {tmp_path}/run/state/state.safetensors cannot be written: ")
    assert resume(tmp_path, data) == undisturbed[0]


def test_interrupted_after_a_step(tmp_path, data, undisturbed):
    process = start(["train", data, "-o", tmp_path / "run", *flags(**EXACT)], tmp_path / "errors")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "last.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    said = (tmp_path / "errors").read_text().splitlines()[-1]
    assert said.startswith("Interrupted: the state after step ")
    assert said.endswith("is written, and --resume goes on from there.")
    assert resume(tmp_path, data) == undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_bits(tmp_path, data, undisturbed, workers):
    assert without_workers(resume(tmp_path, data, workers=workers)) == without_workers(undisturbed[0])
