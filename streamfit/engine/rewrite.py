"""Taking shards, or rows of them, out of a store, and putting others in their place, in one commit. Floor 5.

The segments that held them are counted anew without them (or, `fast`, by subtracting what is read of the leaving shards
alone); until the one commit the store is as it was, and after it as if they had never been read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

from distributed import Client

from streamfit.corpus import Source
from streamfit.engine.crew import crew, n_workers
from streamfit.engine.tasks import Count, Find, Subtract
from streamfit.engine.work import GroupResult, WorkOptions, changed_since, placed
from streamfit.errors import MismatchError
from streamfit.plan import Shard, make_groups
from streamfit.store import (
    Departure,
    FullError,
    Record,
    Removal,
    Segment,
    Store,
    by_kind,
    compact,
    make_room,
    merge_segments,
)

Leaving = Mapping[str, tuple[int, ...] | None]
"""Content ids of shards that leave: whole for None, or the positions of the rows or documents that do."""
_ATTEMPTS = 5


@dataclass(frozen=True)
class Rewritten:
    """What a rewrite did.

    Parameters
    ----------
    record : Record
        The commit.
    departures : tuple of Departure
    segments : tuple of Segment
        Live segments that took the place of others.
    read_rows : int
        Rows that were read for it.
    added_rows, added_shards : int
        Of the shards that came.
    """

    record: Record
    departures: tuple[Departure, ...]
    segments: tuple[Segment, ...]
    read_rows: int
    added_rows: int
    added_shards: int


def rewrite(
    store: Store,
    source: Source,
    leaving: Leaving,
    *,
    adding: Sequence[Shard] = (),
    kind: Literal["forgotten", "replaced"] = "forgotten",
    why: str = "",
    fast: bool = False,
    where: Mapping[str, Shard] | None = None,
    client: Client | None = None,
    options: WorkOptions | None = None,
    group_rows: int | None = None,
) -> Rewritten:
    """Take shards or rows out, and others in, in one commit.

    Parameters
    ----------
    store : Store
    source : Source
        Reads shards by what the ledger says of them; its own files do not matter.
    leaving : mapping of str to tuple of int or None
        Content ids, with positions of rows or None for all.
    adding : sequence of Shard
        Counted in the same commit.
    kind, why : str
        For the record of what left.
    fast : bool
        Read the shards that rows leave, and subtract, instead of counting the rest of their segments anew. The bits are
        the same.
    where : mapping of str to Shard, optional
        Where to read shards now, by the SHA-256 of their bytes, if not where the ledger says.
    client, options, group_rows
        As in `accumulate`.

    Returns
    -------
    Rewritten

    Raises
    ------
    MismatchError
        If a shard is not counted, other writers kept changing the store, or a triangle is to be subtracted from.
    FullError
        If other writers kept filling it.
    ShardChangedError
        If a shard that must be read is gone or has changed; the store is as it was.
    ShardError
        If one that is to come cannot be counted.
    """
    store.refuse_past()
    if fast and store.header.statistic == "qr":
        msg = f"{store.place} keeps a triangular factor, from which nothing can be subtracted"
        raise MismatchError(msg, "statistic 'gram'", "leave out --fast: the rest is then counted anew")
    options = replace(options or WorkOptions(), skip_bad_shards=False)
    attempts = 0
    while True:
        attempts += 1
        missing = [content for content in leaving if content not in store.counted()]
        if missing:
            msg = f"{len(missing)} shards that are not counted, such as {missing[0][:12]}"
            raise MismatchError(msg, "counted shards", "`streamfit status --shards` lists them")
        make_room(store, len({(s.fold(store.header.n_folds), s.source, s.labels) for s in adding}))
        work = _Work(store, leaving, adding, fast, where or {})
        try:
            results = work.run(source, client, options, group_rows)
            return work.commit(results, kind, why)
        except FullError:
            # What left was the last of its kind, and the bound went with it.
            if attempts == _ATTEMPTS:
                raise
            compact(store)
        except MismatchError:
            # A compaction or another run changed a segment meanwhile: what was counted is counted again.
            if attempts == _ATTEMPTS or work.still_stands():
                raise


class _Work:
    """One attempt: which segments are touched, and what shall be in their place."""

    def __init__(
        self, store: Store, leaving: Leaving, adding: Sequence[Shard], fast: bool, where: Mapping[str, Shard]
    ) -> None:
        self._store, self._adding, self._fast = store, adding, fast
        self._counted = store.counted()
        holders = {content: store.holder(content) for content in leaving}
        self._touched = {s.id: s for s in holders.values() if s is not None}
        self._leaving = leaving
        self._before = {s.id: [placed(shard, where) for shard in store.ledger(s)] for s in self._touched.values()}
        self._rest = {segment_id: tuple(self._kept(shards)) for segment_id, shards in self._before.items()}

    def _kept(self, shards: Iterable[Shard]) -> Iterable[Shard]:
        for shard in shards:
            positions = self._leaving.get(shard.content_id, ())
            if positions is not None:
                yield replace(shard, without=tuple(sorted({*shard.without, *positions})))

    def still_stands(self) -> bool:
        """Whether every touched segment is still live, so that trying again would meet the same error."""
        return set(self._touched) <= {segment.id for segment in self._store.head().segments}

    def run(
        self, source: Source, client: Client | None, options: WorkOptions, group_rows: int | None
    ) -> list[GroupResult]:
        header = self._store.header
        rows = group_rows or header.group_rows
        counting = list(self._adding)
        if not self._fast:
            counting += [shard for rest in self._rest.values() for shard in rest]
        results = []
        with crew(self._store, source, client, options) as workers:
            if self._fast:
                for segment_id, rest in self._rest.items():
                    changing = tuple(s for s in self._before[segment_id] if s.content_id in self._leaving)
                    workers.add(Subtract(self._touched[segment_id], changing, rest))
            for group in make_groups(counting, header.n_folds, rows):
                workers.add(Count(group))
            with _changed_since():
                results += [result for _, result in workers.results()]
        return results

    def commit(self, results: Sequence[GroupResult], kind: Literal["forgotten", "replaced"], why: str) -> Rewritten:
        store = self._store
        fresh = by_kind(r.segment for r in results if r.segment is not None)
        # One segment a kind, so that a rewrite never fills a store.
        new = [parts[0] if len(parts) == 1 else merge_segments(store, parts, store) for parts in fresh]
        left_rows = {s.content_id: s.planned_rows for segment in new for s in store.ledger(segment)}
        departures = tuple(self._departure(content, left_rows) for content in self._leaving)
        name, digest = store.write_removal(departures)
        removal = Removal(
            name,
            digest,
            kind,
            0,
            why,
            len(departures),
            sum(d.n_rows for d in departures),
            tuple(self._touched),
        )
        record = store.commit(
            new,
            action=f"{'forget' if kind == 'forgotten' else 'replace'} {removal.n_shards} shards",
            drop=self._touched,
            removals=[removal],
            recount=True,
        )
        added = {s.content_id for s in self._adding}
        return Rewritten(
            record,
            departures,
            tuple(new),
            sum(r.n_rows for r in results),
            sum(n for content, n in left_rows.items() if content in added),
            len(added),
        )

    def _departure(self, content: str, left_rows: Mapping[str, int]) -> Departure:
        shard, positions = self._counted[content], self._leaving[content]
        gone = shard.planned_rows - left_rows.get(content, 0)
        by = " ".join(s.content_id for s in self._adding if s.uri == shard.uri)
        columns = ",".join(name for name, _ in shard.select)
        return Departure(content, shard.key, gone, positions is None, positions or (), by, shard.bytes_id, columns)


def find_rows(
    store: Store,
    source: Source,
    column: str,
    values: Iterable[str],
    *,
    where: Mapping[str, Shard] | None = None,
    client: Client | None = None,
    options: WorkOptions | None = None,
) -> dict[str, tuple[int, ...]]:
    """Counted rows (documents, for text) whose column has one of some values: positions by content id of the shard.

    Every counted shard is looked through, its key column alone where the format allows it.

    Raises
    ------
    ShardChangedError
        If a shard is gone or has changed.
    ShardError
        If it has no such column.
    """
    wanted = frozenset(values)
    counted = sorted(store.counted().values(), key=lambda s: s.key)
    # What was imported as sums has no rows to look through: it can only be forgotten whole.
    shards = [placed(shard, where or {}) for shard in counted if "imported" not in dict(shard.labels)]
    if lost := [shard.key for shard in shards if not shard.uri]:
        msg = f"{len(lost)} counted shards whose place is not known, such as {lost[0]}"
        raise MismatchError(msg, "a place to read each", "say with --corpus where the data lie")
    size = max(1, len(shards) // (8 * n_workers(client)))
    found: dict[str, tuple[int, ...]] = {}
    with crew(store, source, client, options or WorkOptions()) as workers, _changed_since():
        for lo in range(0, len(shards), size):
            workers.add(Find(tuple(shards[lo : lo + size]), column, wanted))
        for _, positions in workers.results():
            found |= positions
    return found


def _changed_since() -> AbstractContextManager[None]:
    """Say what to do about a shard that is no longer what was counted."""
    remedy = "restore the file, say with --corpus where its content lies now, or use --fast, which reads only the"
    return changed_since(
        "the content that was counted, to take it out or to count its neighbours anew",
        f"{remedy} shards that rows leave; nothing was changed",
    )
