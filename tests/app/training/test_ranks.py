"""ranks.py: two processes do what one does that computes the two halves of every batch in turn."""

import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tests.support.cli import ENVIRONMENT, read_csv
from tests.support.training import EXACT, finish, flags, start


def launch(arguments, folder, world=2):
    """Start the processes of a training, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return [
        start(arguments, folder / f"errors{rank}", environment={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(world)
    ]


@pytest.mark.slow
def test_two_processes_against_one(tmp_path, data):
    one = start(["train", data, "-o", tmp_path / "one", *flags(**EXACT)], tmp_path / "errors")
    two = launch(["train", data, "-o", tmp_path / "two", *flags(**EXACT | {"accumulate": 1})], tmp_path)
    assert [finish(process) for process in (one, *two)] == [0, 0, 0], (tmp_path / "errors0").read_text()
    alone, both = (load_file(tmp_path / name / "state" / "state.safetensors") for name in ("one", "two"))
    assert set(alone) == set(both)
    for name in alone:
        if "running_" not in name and "num_batches" not in name:  # of the first process's images alone
            torch.testing.assert_close(
                both[name], alone[name], rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    for row, other in zip(*(read_csv(tmp_path / name / "log.csv") for name in ("one", "two")), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-4)
        assert row["step"] == other["step"]
    assert (tmp_path / "errors1").read_text() == ""  # the first one speaks


def test_bad_input_is_said_once(tmp_path, data):
    processes = launch(["train", data, "-o", tmp_path / "run", *flags(batch_size=1)], tmp_path)
    assert [finish(process) for process in processes] == [2, 2]
    said = "".join((tmp_path / f"errors{rank}").read_text() for rank in range(2)).splitlines()
    errors = [line for line in said if line.startswith("Error")]
    assert errors == ["Error: the batch_size must be at least 2, the parts over all ranks and accumulation; got 1; rank 0 of 2"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_process_that_fails_ends_all_under_torchrun(tmp_path, data):
    code = (
        "import os, hifuse_fast.app.training.recipe as recipe\n"
        "from hifuse_fast.cli import main\n"
        "own = recipe.losses_of\n"
        "if os.environ['RANK'] == '1': recipe.losses_of = lambda *a: own(*a) * float('nan')\n"
        "main()\n"
    )
    (tmp_path / "run.py").write_text(code)
    arguments = ["train", data, "-o", tmp_path / "run", *flags(image_size=40)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", tmp_path / "run.py", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)
    assert done.returncode != 0
    assert "Error: the loss of step 1 (epoch 1) is not finite, with the images" in done.stderr
    assert "rank 1 of 2" in done.stderr
