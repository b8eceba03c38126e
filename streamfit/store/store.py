"""A store of sums: a header, immutable segments, and a log that says which of them count.

Floor 4: imports moments, plan, and this folder. Workers write segments; only a coordinator commits. What keeps a store
small is in `upkeep`, what proves it whole in `verify`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from streamfit.centered import Statistic
from streamfit.counts import Tables
from streamfit.errors import MismatchError, StoreError
from streamfit.merging import BlockTable, LargeTables
from streamfit.moments import Moments
from streamfit.plan import Shard
from streamfit.store.arrays_io import Tiles, open_group, read_group, write_group
from streamfit.store.founding import found, is_store, read_header, what_is_there
from streamfit.store.header import Header
from streamfit.store.ledger import Departure, Ledgers, ledger_key
from streamfit.store.log import KEEP, MAX_LIVE, Log, Record, Refusal, Removal, Segment
from streamfit.store.mix import Mix
from streamfit.store.place import Place
from streamfit.store.policy import check_bound, check_policy, sequence_of, with_pin, without_pin
from streamfit.store.runs import COUNT_BYTES, add_large, stored_tables
from streamfit.store.sums import (
    arrays_of,
    digest_of_arrays,
    is_count,
    moments_of,
    sparse_moments_of,
    tables_of,
    triangle_of,
)

_T = TypeVar("_T")


class Store:
    """An open store.

    Parameters
    ----------
    where : str or Path
        A local folder, or an address such as `s3://bucket/prefix`; see `Place`.
    at : int or str, optional
        A commit, or the name of a pin: the store as it was then, to be read only.
    who : str, optional
        Author of commits; user, host and process without it.

    Raises
    ------
    StoreError
        If there is no store, it is damaged, or the commit cannot be gone back to. `Store.create` makes one.
    """

    def __init__(self, where: str | Path | Place, at: int | str | None = None, *, who: str | None = None) -> None:
        self.place = where if isinstance(where, Place) else Place(where)
        self._log, self._ledgers = Log(self.place, who), Ledgers(self.place)
        self._at: Record | None = None
        self._named: dict[int, tuple[frozenset[str], datetime]] = {}
        newest = None if self.place.local and not self.place.local.is_dir() else self._log.head()
        if newest is None:
            msg = f"{self.place} is not a store: {what_is_there(self.place)}"
            raise StoreError(msg, "a store that `streamfit fit` made", "check the path")
        if at is not None:
            self._at = self._log.read(sequence_of(newest, at))

    @property
    def url(self) -> str:
        """Where it lies; another process opens it by this."""
        return self.place.url

    @staticmethod
    def exists(where: str | Path) -> bool:
        """Whether a place holds a store that was made whole: its log has a first record."""
        return is_store(Place(where))

    @classmethod
    def create(
        cls,
        where: str | Path,
        header: Header,
        *,
        max_live: int = MAX_LIVE,
        keep: int = KEEP,
        who: str | None = None,
    ) -> Store:
        """Make a store, or open the one that is there if it has the same header.

        Parameters
        ----------
        where : str or Path
        header : Header
        max_live : int
            Bound on live segments (at least 2); small ones of a kind are merged to keep it.
        keep : int
            Commits before the newest that one can go back to.
        who : str, optional
            Author of commits; user, host and process without it.

        Raises
        ------
        MismatchError
            If the store there was made with other features, targets, frame, folds or reader.
        StoreError
            If the place holds something else, or cannot be written.
        ConfigError
            If a bound is too small.
        """
        place = Place(where)
        check_policy(max_live, keep)
        found(place, Log(place, who), header, max_live, keep)
        store = cls(place, who=who)
        store.refuse_other(header, str(place))
        return store

    def refuse_other(self, header: Header, whose: str) -> None:
        """Check that a header is this store's own.

        Raises
        ------
        MismatchError
            Naming what differs.
        """
        if self.header.content_hash != header.content_hash:
            msg = f"{whose} was made with other {self.header.difference(header)}"
            raise MismatchError(msg, "the same header", "use another store, or the config that made this one")

    @cached_property
    def _first(self) -> Record:
        return self._log.read(0)

    @cached_property
    def header(self) -> Header:
        """The header, checked against the hash that the log names.

        Raises
        ------
        StoreError
            If it is damaged.
        """
        return read_header(self.place, self._first)

    def head(self) -> Record:
        """The newest record, or the one that the store was opened at."""
        head = self._at or self._log.head()
        if head is None:
            msg = f"{self.place} lost its log"
            raise StoreError(msg, "at least one record", "restore it from a backup")
        return head

    def records(self) -> list[Record]:
        """All records up to the head, oldest first."""
        return [self._log.read(n) for n in range(self.head().sequence + 1)]

    def record(self, sequence: int) -> Record:
        """One record."""
        return self._log.read(sequence)

    def named(self, sequence: int) -> tuple[frozenset[str], datetime]:
        """Ids of the segments of a commit, and its time; read once, for a commit never changes."""
        if sequence not in self._named:
            record = self._log.read(sequence)
            self._named[sequence] = frozenset(s.id for s in record.segments), datetime.fromisoformat(record.when)
        return self._named[sequence]

    # Writing

    def write_segment(
        self, moments: Statistic, shards: Sequence[Shard], n_rows: Sequence[int], tables: LargeTables | None = None
    ) -> Segment:
        """Write moments and their ledger under a fresh name, durably. Nothing counts until it is committed.

        Parameters
        ----------
        moments : Moments
        shards : sequence of Shard
            What was summed, all of one fold, source and labels.
        n_rows : sequence of int
            Rows read from each.
        tables : mapping of str to tables of counts, optional
            Counts over the same rows.

        Raises
        ------
        StoreError
            If it cannot be written.
        """
        return self.write_arrays(arrays_of(moments, tables), moments.n_rows, shards, n_rows)

    def write_arrays(
        self, arrays: Mapping[str, np.ndarray | Tiles], n_rows: int, shards: Sequence[Shard], each: Sequence[int]
    ) -> Segment:
        """As `write_segment`, of arrays that `arrays_of` gave or that are made while they are written.

        Parameters
        ----------
        arrays : mapping of str to array or Tiles
        n_rows : int
        shards : sequence of Shard
        each : sequence of int
            Rows read from each shard.
        """
        name = uuid.uuid4().hex
        digest = self._ledgers.write(name, shards, each)
        attributes = {"n_rows": n_rows, "header": self._first.header}
        attributes |= {"ledger": digest, "sums": digest_of_arrays(arrays)}
        write_group(self.place.objects, f"segments/{name}", attributes, arrays)
        self.place.settle(f"segments/{name}")
        first = shards[0]
        fold = first.fold(self.header.n_folds)
        return Segment(name, fold, first.source, n_rows, len(shards), digest, first.labels)

    def write_removal(self, departures: Sequence[Departure]) -> tuple[str, str]:
        """Write the list of what a commit takes out; returns its name and digest."""
        return self._ledgers.write_removal(departures)

    def commit(
        self,
        segments: Iterable[Segment] = (),
        refused: Iterable[Refusal] = (),
        action: str = "add",
        *,
        drop: Iterable[str] = (),
        removals: Sequence[Removal] = (),
        recount: bool = False,
    ) -> Record:
        """Make segments count, and others cease to: one put-if-absent of the next log record.

        Parameters
        ----------
        segments : iterable of Segment
            To count from now on.
        refused : iterable of Refusal
        action : str
        drop : iterable of str
            Ids of live segments that count no longer.
        removals : sequence of Removal
            What leaves with them; the number of the commit is set here.
        recount : bool
            Allow shards that were forgotten.

        Raises
        ------
        CountedTwiceError
            If a segment holds a shard that is counted already.
        MismatchError
            If a segment to drop is no longer live, or a shard was forgotten.
        FullError
            If there would be more live segments than the bound of what stays.
        StoreError
            If the store cannot be written.
        """
        new, skipped, leaving = list(segments), list(refused), set(drop)

        def build(head: Record) -> Record:
            live = {segment.id for segment in head.segments}
            if not leaving <= live:
                msg = f"segments {', '.join(sorted(leaving - live))[:80]} are no longer live"
                raise MismatchError(msg, "a store that nobody else changed meanwhile", "run again")
            self._ledgers.refuse_repeats(head, leaving, new)
            if not recount:
                self._refuse_forgotten(head, new)
            known = {r.content_id for r in head.refused}
            fresh = {r.content_id: r for r in skipped if r.content_id not in known}
            return replace(
                head,
                segments=(*(s for s in head.segments if s.id not in leaving), *new),
                refused=(*head.refused, *fresh.values()),
                removed=(*head.removed, *(replace(r, sequence=head.sequence + 1) for r in removals)),
            )

        return self._append(build, action)

    def _refuse_forgotten(self, head: Record, new: Sequence[Segment]) -> None:
        coming = [shard for segment in new for shard in self.ledger(segment)]
        gone = self._ledgers.forgotten_among(head, coming)
        for shard in coming:
            if shard.content_id in gone:
                msg = f"{shard.key}, or a part of it, was forgotten by commit {gone[shard.content_id].sequence}"
                raise MismatchError(msg, "shards that may be counted", "run again; it will be left out")

    def discard(self, segment: Segment) -> None:
        """Delete a segment whose commit was refused; one that is live stays."""
        if segment.id not in {s.id for s in self.head().segments}:
            self.place.delete([ledger_key(segment.id)])
            self.place.delete_tree(f"segments/{segment.id}")

    def amend(self, action: str, change: Callable[[Record], dict[str, Any]]) -> Record:
        """Commit a change of pins or policy: `change` gives the new values of the newest record's fields."""
        return self._append(lambda head: replace(head, **change(head)), action)

    def pin(self, name: str, sequence: int | None = None) -> Record:
        """Keep a commit readable under a name until it is unpinned.

        Raises
        ------
        StoreError
            If the commit cannot be gone back to any more, or the name is taken.
        """
        return self._append(lambda head: with_pin(head, name, sequence), f"pin {name}")

    def unpin(self, name: str) -> Record:
        """Let collection take a commit's segments again.

        Raises
        ------
        StoreError
            If there is no such pin.
        """
        return self._append(lambda head: without_pin(head, name), f"unpin {name}")

    def refuse_past(self) -> None:
        """Check that the store was opened as it is now, and not at a commit.

        Raises
        ------
        StoreError
            If it was opened at a commit: nothing may be changed then.
        """
        if self._at is not None:
            msg = f"{self.place} as of commit {self._at.sequence}"
            raise StoreError(msg, "the store as it is now", "open it without a commit to write")

    def _append(self, build: Callable[[Record], Record], action: str) -> Record:
        self.refuse_past()

        def following(head: Record | None) -> Record:
            if head is None:
                msg = f"{self.place} lost its log"
                raise StoreError(msg, "a store")
            record = replace(build(head), sequence=head.sequence + 1, action=action, commit=uuid.uuid4().hex)
            check_bound(record)
            return record

        record = self._log.append(following)
        assert record is not None
        return record

    # Reading

    def ledger(self, segment: Segment) -> list[Shard]:
        """Shards of a segment; `planned_rows` is the number of rows that were read.

        Raises
        ------
        StoreError
            If the ledger is missing or altered.
        """
        return self._ledgers.of(segment)

    def counted(self) -> dict[str, Shard]:
        """Every counted shard by its content id."""
        return {content: shard for content, (shard, _) in self._ledgers.counted(self.head()).items()}

    def holder(self, content_id: str) -> Segment | None:
        """The live segment that a shard is counted in."""
        head = self.head()
        found = self._ledgers.counted(head).get(content_id)
        return next((s for s in head.segments if found and s.id == found[1]), None)

    def forgotten(self) -> Mapping[str, Removal]:
        """Content ids of shards that were forgotten and are not to be counted again."""
        return self._ledgers.forgotten(self.head())

    def forgotten_among(self, shards: Iterable[Shard]) -> dict[str, Removal]:
        """Those of some shards that are not to be counted again, by content id, with the commit that forgot them."""
        return self._ledgers.forgotten_among(self.head(), shards)

    def withdrawn(self) -> dict[str, set[int]]:
        """Positions of rows that were ever forgotten, by the content id of the bytes that they are in."""
        return self._ledgers.withdrawn(self.head())

    def ledger_at(self, segment_id: str) -> list[Shard] | None:
        """Shards of any segment that lies there, committed or not; None if it has no ledger."""
        return self._ledgers.at(segment_id)

    def departures(self, removal: Removal) -> list[Departure]:
        """What one commit took out."""
        return self._ledgers.departures(removal)

    def read(self, segment: Segment) -> Statistic:
        """Moments of one segment.

        Raises
        ------
        StoreError
            If a chunk is missing or its checksum fails, or the segment belongs to another header.
        """
        return self._moments(segment, self._arrays(segment, lambda name: not is_count(name)))

    def read_all(self, segment: Segment, *, check: bool = False) -> tuple[Statistic, Tables]:
        """Moments of one segment and its tables of counts; `check` compares them with their digest.

        Raises
        ------
        StoreError
            As for `read`, and if the digest is another.
        """
        arrays = self._arrays(segment, lambda _: True, check)
        return self._moments(segment, arrays), tables_of(arrays)

    def _arrays(self, segment: Segment, keep: Callable[[str], bool], check: bool = False) -> dict[str, np.ndarray]:
        attributes, arrays = read_group(self.place.objects, f"segments/{segment.id}", keep)
        self._refuse_other(segment, attributes)
        if check and attributes.get("sums") != digest_of_arrays(arrays):
            msg = f"segment {segment.id} holds other sums than it was written with"
            raise StoreError(msg, f"digest {str(attributes.get('sums'))[:12]}", "restore it from a backup")
        return arrays

    def _refuse_other(self, segment: Segment, attributes: Mapping[str, Any]) -> None:
        expected = (self._first.header, segment.n_rows, segment.ledger)
        if tuple(attributes.get(name) for name in ("header", "n_rows", "ledger")) != expected:
            msg = f"segment {segment.id} does not belong to this store's log"
            raise StoreError(msg, f"{segment.n_rows} rows under this header and ledger", "restore it from a backup")

    def _moments(self, segment: Segment, arrays: Mapping[str, np.ndarray]) -> Statistic:
        header, where, n_rows = self.header, f"segment {segment.id}", segment.n_rows
        frame, one_hot = header.frame, header.targets.one_hot
        if header.statistic == "qr":
            return triangle_of(arrays, frame, one_hot, n_rows, where)
        if header.statistic == "sparse":
            return sparse_moments_of(arrays, frame, one_hot, n_rows, where)
        return moments_of(arrays, frame, one_hot, n_rows, where, header.precision)

    def open_tables(self, segment: Segment) -> dict[str, BlockTable]:
        """Tables of counts of one segment, to be read by blocks.

        Raises
        ------
        StoreError
            If a chunk is missing, or the segment belongs to another header.
        """
        where = f"segments/{segment.id}"
        attributes, arrays = open_group(self.place.objects, where, is_count)
        self._refuse_other(segment, attributes)
        return stored_tables(arrays, where)

    def counts(self, mix: Mix | None = None, *, budget: int = COUNT_BYTES, folder: Path | None = None) -> LargeTables:
        """Sum of the tables of all live segments, in memory or, where that is more than the budget, on disk.

        Parameters
        ----------
        mix : Mix, optional
            Weights of segments: 0 leaves a segment out, and others are how often it is taken, see `Mix.times`.
        budget : int
            Bytes that merging takes at most, beside two chunks of each segment.
        folder : Path, optional
            Where a sum is written that memory does not hold; the system's folder for temporary files without it.
        """

        def read(head: Record) -> LargeTables:
            times, _ = (mix or Mix()).times(head.segments)
            taken = [segment for segment in head.segments if segment.id in times]
            tables = [self.open_tables(segment) for segment in taken]
            return add_large(tables, [times[segment.id] for segment in taken], budget=budget, folder=folder)

        return self._settled(read)

    def tables(self) -> Iterator[Tables]:
        """Tables of counts of each live segment."""
        for segment in self.head().segments:
            yield tables_of(self._arrays(segment, is_count))

    def moments(self, keep: Callable[[Segment], bool] = lambda _: True, mix: Mix | None = None) -> Statistic:
        """Sum of all live segments, or of those that `keep` accepts, one in memory at a time.

        Parameters
        ----------
        keep : callable
        mix : Mix, optional
            Weights of segments. Those of equal weight are summed exactly before they are weighted, so the result does
            not depend on how rows were cut into segments.
        """
        return self._settled(lambda head: self._sum(head, keep, mix))

    def _sum(self, head: Record, keep: Callable[[Segment], bool], mix: Mix | None) -> Statistic:
        total = self.zeros()
        for factor, segments in (mix or Mix()).spread(head.segments):
            part = self.zeros()
            # By content: exact sums have no order, triangles round, and are not to show when they were committed.
            for segment in sorted(filter(keep, segments), key=lambda segment: segment.ledger):
                part = part + self.read(segment)
            # Rows are those that were read, whatever they weigh.
            total = total + (part if factor == 1.0 else replace(cast(Moments, part * factor), n_rows=part.n_rows))
        return total

    def _settled(self, read: Callable[[Record], _T]) -> _T:
        """What `read` makes of one commit, whatever is compacted and collected meanwhile."""
        while True:
            head = self.head()
            try:
                return read(head)
            except StoreError:
                if {s.id for s in head.segments} <= {s.id for s in self.head().segments}:
                    raise
                # A run went on long enough for segments of that commit to be collected: read the newest.

    def zeros(self) -> Statistic:
        """Moments of no rows."""
        return self.header.zeros()

    def fold_moments(self, mix: Mix | None = None) -> dict[int, Statistic]:
        """Moments of each fold that has rows."""

        def read(head: Record) -> dict[int, Statistic]:
            folds = sorted({segment.fold for segment in head.segments})
            return {fold: self._sum(head, lambda s, fold=fold: s.fold == fold, mix) for fold in folds}  # type: ignore[misc]

        return self._settled(read)
