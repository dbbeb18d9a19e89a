"""notes.py: what is said of the images of a run."""

from pathlib import Path

from hifuse_fast.app.notes import ImageNotes
from hifuse_fast.app.output import Row


def said_of(rows, bits=16):
    said = []
    notes = ImageNotes(said.append, bits)
    assert list(notes.watch(rows)) == rows
    at_once = list(said)
    notes.close()
    return at_once, said[len(at_once) :]


def row(name, **facts):
    return Row(Path(name), "0", 1.0, (1.0,), **facts)


def test_samples_that_may_have_12_bits_are_named_once_and_at_once():
    rows = [row("8 bits"), row("blank", largest=0), row("bright", largest=4096), row("dim", largest=4095), row("2", largest=9)]
    assert said_of(rows) == (
        [
            "dim: its 16-bit values are at most 4095, so it is nearly of one shade. If its data have 12 bits, give --bits 12. "
            "(This is said once a run.)"
        ],
        [],
    )
    assert said_of(rows, bits=12) == ([], [])


def test_files_of_several_pages_are_named_at_the_end():
    rows = [row("a.tif", pages=12), row("b.png"), row("c.tif", pages=2)]
    end = ["Only the first page was read of 2 files: a.tif (first of 12 pages), c.tif (first of 2 pages)."]
    assert said_of(rows) == ([], end)
    assert said_of(rows[:2])[1] == ["Only the first page was read of 1 file: a.tif (first of 12 pages)."]
    many = [row(f"{index}", pages=2) for index in range(20)]
    assert said_of(many)[1][0].endswith("7 (first of 2 pages), and 12 more.")
