"""Ledgers: which shards a segment holds, and which have left. Floor 4: imports plan, log, place.

A Parquet file a segment, named with its digest by the log. They are what `add`, `resume`, `forget`, `merge` and
`verify` go by; nothing is counted that is not in one, and no content is in two.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from streamfit.errors import MismatchError, StoreError
from streamfit.plan import Shard
from streamfit.store.log import Record, Removal, Segment
from streamfit.store.place import Place

_PAIRS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))
_LEDGER = pa.schema(
    [
        ("content_id", pa.binary(32)),
        ("key", pa.string()),
        ("uri", pa.string()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("size", pa.int64()),
        ("n_rows", pa.int64()),
        ("source", pa.string()),
        ("labels", _PAIRS),
        ("select", _PAIRS),
        ("within", pa.binary(32)),
        ("without", pa.list_(pa.int64())),
    ]
)
_PLAIN = ("key", "uri", "start", "stop", "size", "source")
_REMOVED = pa.schema(
    [
        ("content_id", pa.binary(32)),
        ("key", pa.string()),
        ("n_rows", pa.int64()),
        ("whole", pa.bool_()),
        ("positions", pa.list_(pa.int64())),
        ("replaced_by", pa.string()),
        ("bytes_id", pa.binary(32)),
        ("columns", pa.string()),
    ]
)


@dataclass(frozen=True)
class Departure:
    """One shard that left, or the part of it that did.

    Parameters
    ----------
    content_id, key : str
    n_rows : int
        Rows that left.
    whole : bool
    positions : tuple of int
        Rows or documents that left, counted from the shard's start; empty where all did.
    replaced_by : str
        Content ids that took its place, joined by a space.
    bytes_id : str
        SHA-256 of the bytes that it is in; the content id where it is all of them.
    columns : str
        Names of the columns that it selects by, joined by a comma.
    """

    content_id: str
    key: str
    n_rows: int
    whole: bool
    positions: tuple[int, ...] = ()
    replaced_by: str = ""
    bytes_id: str = ""
    columns: str = ""


@dataclass
class _Index:
    """Every counted shard, and which segment holds it, kept in step with the log."""

    ids: set[str] = field(default_factory=set)
    shards: dict[str, tuple[Shard, str]] = field(default_factory=dict)
    bytes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, int] = field(default_factory=dict)

    def leave(self, segment_id: str, shards: Iterable[Shard]) -> None:
        """Take a segment out."""
        self.ids.discard(segment_id)
        for shard in shards:
            if self.shards[shard.content_id][1] == segment_id:
                del self.shards[shard.content_id]
            self.parts[shard.bytes_id] -= 1
            if not self.parts[shard.bytes_id]:
                del self.parts[shard.bytes_id], self.bytes[shard.bytes_id]

    def come(self, segment_id: str, shards: Iterable[Shard]) -> None:
        """Take a segment in."""
        self.ids.add(segment_id)
        for shard in shards:
            self.shards[shard.content_id] = (shard, segment_id)
            self.bytes[shard.bytes_id] = _columns(shard)
            self.parts[shard.bytes_id] = self.parts.get(shard.bytes_id, 0) + 1


class Ledgers:
    """The ledgers of one store; each file is read once.

    Parameters
    ----------
    place : Place
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._read: dict[str, list[Shard]] = {}
        self._departed: dict[str, list[Departure]] = {}
        self._index = _Index()

    def write(self, segment_id: str, shards: Sequence[Shard], n_rows: Sequence[int]) -> str:
        """Write the ledger of a segment; returns its digest."""
        rows = [_ledger_row(shard, n) for shard, n in zip(shards, n_rows, strict=True)]
        data = _parquet(rows, _LEDGER)
        self._place.put(ledger_key(segment_id), data)
        return hashlib.sha256(data).hexdigest()

    def of(self, segment: Segment) -> list[Shard]:
        """Shards of a segment; `planned_rows` is the number of rows that were read.

        Raises
        ------
        StoreError
            If the ledger is missing or altered.
        """
        if segment.id not in self._read:
            data = self._checked(ledger_key(segment.id), segment.ledger)
            self._read[segment.id] = [_shard(row) for row in _rows(data, _LEDGER)]
        return self._read[segment.id]

    def counted(self, head: Record) -> dict[str, tuple[Shard, str]]:
        """Each counted shard by content id, with the id of its segment."""
        return self._in_step(head).shards

    def _in_step(self, head: Record) -> _Index:
        index, live = self._index, {segment.id for segment in head.segments}
        # Only what changed: a commit must not take the longer the more is counted.
        for segment_id in index.ids - live:
            index.leave(segment_id, self._read.pop(segment_id))
        for segment in head.segments:
            if segment.id not in index.ids:
                index.come(segment.id, self.of(segment))
        return index

    def refuse_repeats(self, head: Record, dropped: Iterable[str], new: Sequence[Segment]) -> None:
        """Check that no content would be counted twice.

        Parameters
        ----------
        head : Record
        dropped : iterable of str
            Segments that leave in the same commit.
        new : sequence of Segment

        Raises
        ------
        CountedTwiceError
            Naming the shard.
        MismatchError
            If bytes would be counted under two divisions into labelled parts, which may share rows.
        """
        index, leaving = self._in_step(head), set(dropped)
        coming: dict[str, Shard] = {}
        cuts: dict[str, tuple[str, ...]] = {}
        for shard in (shard for segment in new for shard in self.of(segment)):
            there = index.shards.get(shard.content_id)
            if there is not None and there[1] in leaving:
                there = None
            first = coming.get(shard.content_id) or (there[0] if there else None)
            if first is not None:
                msg = f"{shard.key} is counted already, as {first.key}"
                raise CountedTwiceError(msg, "each content once", "another run added the same data: run again")
            cut = cuts.setdefault(shard.bytes_id, _columns(shard))
            counted_cut = index.bytes.get(shard.bytes_id, cut)
            if counted_cut != cut and any(
                s.bytes_id == shard.bytes_id and where not in leaving for s, where in index.shards.values()
            ):
                cut = counted_cut
            if cut != _columns(shard):
                by = " and ".join(", ".join(c) or "nothing" for c in (cut, _columns(shard)))
                msg = f"{shard.key} is counted already, divided by other columns ({by})"
                raise MismatchError(msg, "each row once", "use the label columns that it was first counted with")
            coming[shard.content_id] = shard

    def write_removal(self, departures: Sequence[Departure]) -> tuple[str, str]:
        """Write what leaves; returns the name of the file and its digest."""
        name = uuid.uuid4().hex
        rows = [
            {
                "content_id": bytes.fromhex(d.content_id),
                "key": d.key,
                "n_rows": d.n_rows,
                "whole": d.whole,
                "positions": list(d.positions),
                "replaced_by": d.replaced_by,
                "bytes_id": bytes.fromhex(d.bytes_id or d.content_id),
                "columns": d.columns,
            }
            for d in departures
        ]
        data = _parquet(rows, _REMOVED)
        self._place.put(removal_key(name), data)
        return name, hashlib.sha256(data).hexdigest()

    def departures(self, removal: Removal) -> list[Departure]:
        """What one commit took out."""
        if removal.id not in self._departed:
            rows = _rows(self._checked(removal_key(removal.id), removal.digest), _REMOVED)
            self._departed[removal.id] = [
                Departure(
                    **{
                        **r,
                        "content_id": r["content_id"].hex(),
                        "bytes_id": r["bytes_id"].hex(),
                        "positions": tuple(r["positions"]),
                    }
                )
                for r in rows
            ]
        return self._departed[removal.id]

    def forgotten(self, head: Record) -> Mapping[str, Removal]:
        """Content ids of shards that were forgotten whole and are not counted now, with the commit that did it."""
        found: dict[str, Removal] = {}
        for removal in head.removed:
            if removal.kind == "forgotten":
                found |= {d.content_id: removal for d in self.departures(removal) if d.whole}
        counted = self.counted(head) if found else {}
        return {content: removal for content, removal in found.items() if content not in counted}

    def forgotten_among(self, head: Record, shards: Iterable[Shard]) -> dict[str, Removal]:
        """Those of some shards that were forgotten, by content id: themselves, or a part of theirs cut otherwise."""
        gone = self.forgotten(head)
        cuts: dict[str, list[tuple[str, Removal]]] = {}
        for removal in set(gone.values()):
            for d in self.departures(removal):
                if d.whole and d.content_id in gone:
                    cuts.setdefault(d.bytes_id, []).append((d.columns, removal))
        found: dict[str, Removal] = {}
        for shard in shards if gone else ():
            others = [r for columns, r in cuts.get(shard.bytes_id, ()) if columns != ",".join(_columns(shard))]
            if shard.content_id in gone or others:
                found[shard.content_id] = gone[shard.content_id] if shard.content_id in gone else others[0]
        return found

    def withdrawn(self, head: Record) -> dict[str, set[int]]:
        """Positions of rows that were ever forgotten, by the content id of the bytes that they are in."""
        found: dict[str, set[int]] = {}
        for removal in head.removed:
            for d in self.departures(removal) if removal.kind == "forgotten" else ():
                if d.positions:
                    found.setdefault(d.bytes_id, set()).update(d.positions)
        return found

    def at(self, segment_id: str) -> list[Shard] | None:
        """Shards of any segment that lies there, committed or not; None if it has no ledger."""
        data = self._place.get(ledger_key(segment_id))
        return None if data is None else [_shard(row) for row in _rows(data, _LEDGER)]

    def _checked(self, key: str, digest: str) -> bytes:
        data = self._place.get(key)
        if data is None:
            msg = f"{key} is missing"
            raise StoreError(msg, "the ledger of a commit", "restore it from a backup")
        if hashlib.sha256(data).hexdigest() != digest:
            msg = f"{key} was altered: its digest does not match the log"
            raise StoreError(msg, "the bytes that were committed", "restore it from a backup")
        return data


class CountedTwiceError(MismatchError):
    """A commit that would count some content a second time; nothing was changed."""


def ledger_key(segment_id: str) -> str:
    """Object name of a ledger: beside the segments, for Zarr tools take a stray file in a group for damage."""
    return f"ledgers/{segment_id}.parquet"


def removal_key(name: str) -> str:
    """Object name of a list of what left."""
    return f"removals/{name}.parquet"


def _columns(shard: Shard) -> tuple[str, ...]:
    return tuple(name for name, _ in shard.select)


def _ledger_row(shard: Shard, n_rows: int) -> dict[str, Any]:
    return {
        **{name: getattr(shard, name) for name in _PLAIN},
        "content_id": bytes.fromhex(shard.content_id),
        "n_rows": n_rows,
        "labels": [{"name": n, "value": v} for n, v in shard.labels],
        "select": [{"name": n, "value": v} for n, v in shard.select],
        "within": bytes.fromhex(shard.within) if shard.within else None,
        "without": list(shard.without),
    }


def _shard(row: dict[str, Any]) -> Shard:
    return Shard(
        **{name: row[name] for name in _PLAIN},
        content_id=row["content_id"].hex(),
        planned_rows=row["n_rows"],
        labels=tuple((p["name"], p["value"]) for p in row["labels"]),
        select=tuple((p["name"], p["value"]) for p in row["select"]),
        within=row["within"].hex() if row["within"] else "",
        without=tuple(row["without"]),
    )


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return sink.getvalue()


def _rows(data: bytes, schema: pa.Schema) -> list[dict[str, Any]]:
    # Not `read_table`, which looks for a data set around the file first.
    return list(pq.ParquetFile(io.BytesIO(data)).read().select(schema.names).cast(schema).to_pylist())
