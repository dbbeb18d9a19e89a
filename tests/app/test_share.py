"""share.py: each thing is one process's, in batches that are those of one process."""

from __future__ import annotations

import pytest
import torch

from hifuse_fast.app.share import Share


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 4, 5, 23, 24])
@pytest.mark.parametrize("size", [1, 4, 50])
def test_every_batch_is_one_processs(world: int, count: int, size: int) -> None:
    batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
    for rank in range(world):
        own = list(Share(rank, world).indices(count, size))
        assert own == [i for batch in batches[rank::world] for i in batch]


def test_the_environment_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Share.of_environment() == Share(0, 1)
    assert Share().place(torch.device("cuda")) == torch.device("cuda")
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    share = Share.of_environment()
    assert (share, str(share)) == (Share(5, 8, 1), "5-of-8")
    assert share.place(torch.device("cuda")) == torch.device("cuda:1")
    assert share.place(torch.device("cuda:0")) == torch.device("cuda:0")
    assert share.place(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize(
    ("rank", "world", "message"),
    [
        ("8", "8", "RANK must be below its WORLD_SIZE of 8, got 8"),
        ("", "2", "RANK must be a number"),
        ("0", "x", "WORLD_SIZE must"),
    ],
)
def test_an_environment_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, rank: str, world: str, message: str) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ValueError, match=message):
        Share.of_environment()
