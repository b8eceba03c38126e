"""Groups one after another in one process: the first block of the next is decoded while a segment is written. Floor 5.

A row group is decoded whole, and at the start of a group nothing is there to be multiplied meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from streamfit.corpus import Rows, Source
from streamfit.corpus.base import Tally
from streamfit.plan import Shard


class ReadAhead(Source):
    """A source that knows what is read after some shard, and begins with it when that one is done.

    No more memory is taken than between two shards of a group: one is decoded while blocks of the last one are left.

    Parameters
    ----------
    source : Source
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._after: dict[Shard, Shard] = {}
        self._begun: tuple[Shard, Future[tuple[Rows | None, Iterator[Rows]]]] | None = None
        self._thread: ThreadPoolExecutor | None = None

    def follow(self, shard: Shard, following: Shard) -> None:
        """Tell that a shard is the last of its group, and which is the first of the next."""
        self._after = {shard: following}

    def read(self, shard: Shard) -> Iterator[Rows]:
        first, rest = self._opened(shard)
        if first is not None:
            yield first
            del first
            yield from rest
        del rest  # and with it the memory of what was decoded, before the next is
        if shard in self._after:
            following = self._after.pop(shard)
            self._thread = self._thread or ThreadPoolExecutor(1, "streamfit-ahead")
            self._begun = following, self._thread.submit(_begin, self._source, following)

    def _opened(self, shard: Shard) -> tuple[Rows | None, Iterator[Rows]]:
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == shard:
            return begun[1].result()
        if begun is not None:  # another group came between, such as one that was planned anew
            _close(begun[1])
        return _begin(self._source, shard)

    def close(self) -> None:
        """Give up what was begun and not asked for."""
        if self._begun is not None:
            _close(self._begun[1])
            self._begun = None
        if self._thread is not None:
            self._thread.shutdown()

    def shards(self) -> list[Shard]:
        return self._source.shards()

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self._source.positions(shard, column, values)

    @property
    def is_weighted(self) -> bool:
        return self._source.is_weighted

    @property
    def row_item(self) -> int:
        return self._source.row_item

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        return self._source.decode_bytes(shards, row_bytes)

    def blocks_held(self, shard: Shard) -> int:
        return self._source.blocks_held(shard)

    def tally(self) -> Tally | None:
        return self._source.tally()

    def tally_room(self, n_rows: int) -> int:
        return self._source.tally_room(n_rows)


def _begin(source: Source, shard: Shard) -> tuple[Rows | None, Iterator[Rows]]:
    rest = iter(source.read(shard))
    return next(rest, None), rest


def _close(begun: Future[tuple[Rows | None, Iterator[Rows]]]) -> None:
    if begun.cancel() or begun.exception() is not None:
        return
    _, rest = begun.result()
    close = getattr(rest, "close", None)  # of a generator, which may hold a file
    if close is not None:
        close()
