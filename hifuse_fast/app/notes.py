"""What a run says of its images beside the results: what was not read, and what may have been read wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hifuse_fast.app.output import Row

_DIM = 2**12  #: 16-bit samples below it may have 12 bits
_NAMED = 8  #: how many files a summary names


class ImageNotes:
    """Says what `rows` show of their images: at once, or at the end.

    Args:
        say: called with a line of text.
        bits: those that 16-bit samples were taken for.
    """

    def __init__(self, say: Callable[[str], None], bits: int) -> None:
        self._say = say
        self._dim_is_news = bits > 12
        self._several: list[str] = []

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The rows as they come; errors are said at once, and of the first image that looks so that its data have 12 bits."""
        for row in rows:
            if row.error is not None:
                self._say(f"{row.path}: {row.error}")
            if self._dim_is_news and row.largest is not None and 0 < row.largest < _DIM:
                self._dim_is_news = False
                self._say(
                    f"{row.path}: its 16-bit values are at most {row.largest}, so it is nearly of one shade. If its data have "
                    "12 bits, give --bits 12. (This is said once a run.)"
                )
            if row.pages > 1:
                self._several.append(f"{row.path} (first of {row.pages} pages)")
            yield row

    def close(self) -> None:
        """Name the files that have more pages than the one that was read."""
        if self._several:
            more = f", and {len(self._several) - _NAMED} more" if len(self._several) > _NAMED else ""
            files = "1 file" if len(self._several) == 1 else f"{len(self._several)} files"
            self._say(f"Only the first page was read of {files}: {', '.join(self._several[:_NAMED])}{more}.")
