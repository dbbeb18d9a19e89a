"""A run that is killed, stopped or fails, and is resumed, comes to the same bits as one that nothing disturbed."""

import random
import signal
import time

import pytest

from tests.support.training import EXACT, contents, finish, flags, start

GOES_ON = "--resume goes on from there"


def resume(tmp_path, data, **settings):
    """Bring a run to its end, whether it was begun or not; what it comes to."""
    begun = (tmp_path / "run" / "config.toml").exists()
    arguments = ["train", data, "-o", tmp_path / "run", *flags(**EXACT, **settings), *(["--resume"] if begun else [])]
    assert finish(start(arguments, tmp_path / "errors")) == 0, (tmp_path / "errors").read_text()
    return contents(tmp_path / "run")


def without_workers(found):
    """Contents, without what says how many workers there were."""
    for metadata in (value for name, value in found.items() if name.endswith("metadata")):
        for record in metadata.values():
            (record if "configuration" in record else {"configuration": {}})["configuration"].pop("workers", None)
            record.get("configuration", {}).pop("data", None)
    return found


def kill_and_resume(tmp_path, data, undisturbed, kills, workers, seed):
    draw = random.Random(seed)
    arguments = ["train", data, "-o", tmp_path / "run", *flags(**EXACT, workers=workers)]
    killed = 0
    for attempt in range(4 * kills):
        begun = (tmp_path / "run" / "config.toml").exists()
        process = start([*arguments, *(["--resume"] if begun else [])], tmp_path / "errors")
        process.join(draw.uniform(0.1, 2.5))
        process.kill()
        killed += finish(process) == -signal.SIGKILL
        if killed == kills or (killed and attempt > 2 * kills):
            break
    assert killed
    assert without_workers(resume(tmp_path, data, workers=workers)) == without_workers(undisturbed), f"seed {seed}"


def test_killed_at_random_moments(tmp_path, data, undisturbed):
    kill_and_resume(tmp_path, data, undisturbed, 3, workers=2, seed=time.time_ns())


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 4])
@pytest.mark.parametrize("repetition", range(4))
def test_killed_at_many_random_moments(tmp_path, data, undisturbed, workers, repetition):
    kill_and_resume(tmp_path, data, undisturbed, 5, workers, seed=time.time_ns())


# Files in their order: splits, configuration, log; then last and state at each of steps 1, 2, 3; best, last, state, log, curves.
SOME = [("killed in a write", 7), ("killed before a rename", 12), ("killed after a rename", 11)]
ALL = [(name, number) for name in ("killed before a rename", "killed after a rename") for number in range(1, 34)]
ALL += [("killed in a write", number) for number in range(1, 24)]


@pytest.mark.parametrize(
    "fault", [*SOME, *(pytest.param(each, marks=pytest.mark.slow) for each in ALL if each not in SOME)], ids=str
)
def test_killed_while_files_are_written(tmp_path, data, undisturbed, fault):
    process = start(["train", data, "-o", tmp_path / "run", *flags(**EXACT)], tmp_path / "errors", fault)
    assert finish(process) in (-signal.SIGKILL, 0)  # 0 where there were not so many files
    assert process.exitcode or fault not in SOME
    assert resume(tmp_path, data) == undisturbed
    assert not [*(tmp_path / "run").glob(".*"), *(tmp_path / "run" / "state").glob(".*")]


def test_no_space_for_a_checkpoint(tmp_path, data, undisturbed):
    process = start(["train", data, "-o", tmp_path / "run", *flags(**EXACT)], tmp_path / "errors", ("no space", 6))
    assert finish(process) == 2
    error = (tmp_path / "errors").read_text().splitlines()[-1]
    assert error.startswith(f"Error: {tmp_path}/run/state/state.safetensors cannot be written: ")
    assert resume(tmp_path, data) == undisturbed


def test_interrupted_after_a_step(tmp_path, data, undisturbed):
    process = start(["train", data, "-o", tmp_path / "run", *flags(**EXACT | {"save-every": 0})], tmp_path / "errors")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "log.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    import os

    os.kill(process.pid, signal.SIGINT)
    assert finish(process) == 130
    assert (tmp_path / "errors").read_text().splitlines()[-1].endswith(GOES_ON + ".")
    arguments = ["train", data, "-o", tmp_path / "run", "--resume", "--override", "--save-every", 1]
    assert finish(start(arguments, tmp_path / "errors")) == 0
    assert contents(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_workers_do_not_change_the_bits(tmp_path, data, undisturbed, workers):
    assert without_workers(resume(tmp_path, data, workers=workers)) == without_workers(undisturbed)
