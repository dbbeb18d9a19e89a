"""How many kernels a call of the frozen network launches: the number must not grow."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from click.testing import CliRunner

from hifuse_fast import BackendError
from hifuse_fast.backends import tables
from hifuse_fast.backends.cuda import library
from hifuse_fast.backends.record import recording
from tools import launches
from tools.launches import Kernel, LibraryCall

# Of one image on the frozen Small; docs/ladder.md says which kernels these are. Fewer are welcome: write the new number here.
MOST = {"triton": 131, "cuda": 85}


@pytest.mark.parametrize("backend", launches.BACKENDS)
def test_one_image_launches_no_more_kernels_than_before(backend: str) -> None:
    try:
        found = launches.kernels(backend)
    except BackendError as error:
        pytest.skip(str(error))
    assert len(found) == MOST[backend], launches.lines(found)
    lines = launches.lines(found)
    assert sum(int(line[3]) for line in lines) == len(found)
    assert {line[0]: line[1] for line in lines}["fusion.mixer"] == "4"
    assert all(len(line) == len(launches.COLUMNS) for line in lines)


def test_operators_of_the_library_are_kernels_but_for_views_and_empty_tensors() -> None:
    x = torch.empty(2, 3, 4, device="meta")
    with recording("sm_90") as record, launches._Library(record):
        torch.addmm(x[0, :, 0], x.view(2, 12)[:, :3].contiguous(), x.new_empty(3, 3).t())
        x.transpose(1, 2).contiguous()
        x.contiguous()  # as it is
        x.to(torch.bfloat16)
    assert record.launches == [LibraryCall(name) for name in ("clone", "addmm", "clone", "_to_copy")]


def test_a_line_has_the_stages_together() -> None:
    made = [Kernel(f"stages.{i}.local_blocks.{j}", "linear forward") for i in (0, 3) for j in (0, 1)]
    made += [Kernel("stages.3.local_blocks.1", "end"), Kernel("head", "library addmm")]
    assert launches.lines(made) == [
        ["local_blocks", "4", "1 to 2", "5", "4 linear forward, 1 end"],
        ["head", "1", "1", "1", "1 library addmm"],
    ]


def test_the_command_says_what_it_cannot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(backend: str, *_: object) -> list[Kernel]:
        if backend == "cuda":
            raise BackendError("it is not built")
        return [Kernel("head", "library addmm")]

    monkeypatch.setattr(launches, "kernels", count)
    done = CliRunner().invoke(launches.main, [])
    assert done.exit_code == 0
    assert "1 kernels of a call of the frozen hifuse_small on 'triton'" in done.output
    assert "cuda: not counted, it is not built" in done.output


@pytest.mark.skipif(library.lib is None, reason="the CUDA kernels are not built")
@pytest.mark.parametrize("order", [["cuda"], ["reference", "cuda"]])
def test_auto_takes_a_whole_block_where_its_own_order_says_so(order: list[str]) -> None:
    """Though none of its parts would be CUDA's by its own order."""
    with tables.override("prepare_global_block", {"order": order}), tables.override("prepare_fuse_path", {"order": order}):
        names = Counter(kernel.name for kernel in launches.kernels("auto"))
    assert (names["global_block"], names["fuse_path"]) == ((4, 1) if order == ["cuda"] else (0, 0))
    assert names["local_block"] == 0
