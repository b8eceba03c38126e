"""A store of sums: a header, immutable segments, and a log that says which of them count.

Floor 4: imports moments, plan, and this folder. Workers write segments; only the coordinator commits.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore

from streamfit.errors import MismatchError, StoreError
from streamfit.exact import BASE, COARSE, DIGIT_BITS, GridSum
from streamfit.frame import n_tiles, tile_size
from streamfit.moments import Moments
from streamfit.plan import Shard, counted_twice
from streamfit.store.arrays_io import read_group, sync_file, sync_tree, write_group
from streamfit.store.header import Header
from streamfit.store.log import Log, Record, Refusal, Segment, record_key

_SUMS = ("weight", "sum_x", "sum_y", "sum_yy", "gram", "cross")
_SUFFIX = {COARSE: "_coarse", BASE: "", BASE - DIGIT_BITS: "_fine"}
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
    ]
)
_TALLY = "tally_"
_COPIED = ("key", "uri", "start", "stop", "size", "source")


class Store:
    """An open store.

    Parameters
    ----------
    path : str or Path
        A local folder.

    Raises
    ------
    StoreError
        If there is no store, or it is damaged. `Store.create` makes one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "_log").is_dir():
            there = "a folder without a log" if self.path.is_dir() else "no folder"
            msg = f"{self.path} is not a store: {there}"
            raise StoreError(msg, "a folder that `streamfit fit` made", "check the path")
        self._open()
        if self._log.head() is None:
            msg = f"{self.path} is not a store: its log is empty"
            raise StoreError(msg, "a folder that `streamfit fit` made", "remove it and fit again")

    def _open(self) -> None:
        self._objects = LocalStore(self.path)
        self._log = Log(self._objects, lambda key: sync_file(self.path / key))
        self._ledgers: dict[str, list[Shard]] = {}

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether a folder holds a store that was made whole: its log has a first record."""
        return (Path(path) / record_key(0)).is_file()

    @classmethod
    def create(cls, path: str | Path, header: Header) -> Store:
        """Make a store, or open the one that is there if it has the same header.

        Raises
        ------
        MismatchError
            If the store there was made with other features, targets, frame, folds or reader.
        StoreError
            If the folder holds something else.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            msg = f"{path} is a file"
            raise StoreError(msg, "a folder, or nothing there yet", "choose another path")
        if path.is_dir() and any(path.iterdir()) and not (path / "_log").is_dir():
            names = sorted(p.name for p in path.iterdir())
            if not set(names) <= {"header", "zarr.json"}:
                msg = f"{path} is not a store, but holds {', '.join(names[:3])}"
                raise StoreError(msg, "a store or an empty folder", "choose another path")
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            msg = f"cannot make {path}: {error.strerror}"
            raise StoreError(msg, "a writable folder", "check permissions") from error
        store = cls.__new__(cls)
        store.path = path
        store._open()
        head = store._log.head()
        if head is None:
            folder = store._write_header(header)

            def first(newest: Record | None) -> Record | None:
                return Record(0, header.content_hash, folder) if newest is None else None

            store._log.append(first)
        store = cls(path)
        if store.header.content_hash != header.content_hash:
            msg = f"{path} was made with other {store.header.difference(header)}"
            raise MismatchError(msg, "the same header", "use another store, or the config that made this one")
        return store

    def _write_header(self, header: Header) -> str:
        spec, arrays = header.to_spec()
        # A fresh name: what a crash left half-written is never taken for whole, for no record names it.
        folder = f"header/{uuid.uuid4().hex}"
        write_group(self._objects, folder, spec, arrays)
        sync_tree(self.path / folder)
        return folder

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
        spec, arrays = read_group(self._objects, self._first.header_at)
        fault: Exception | None = None
        try:
            header = Header.from_spec(spec, arrays)
            if header.content_hash == self._first.header:
                return header
        except StoreError:
            raise
        except Exception as error:  # an altered description fails in as many ways as it has fields
            fault = error
        msg = f"the header of {self.path} was altered"
        raise StoreError(msg, f"content {self._first.header[:12]}", "restore it from a backup") from fault

    def head(self) -> Record:
        """The newest record."""
        head = self._log.head()
        if head is None:
            msg = f"{self.path} is not a store: its log is empty"
            raise StoreError(msg, "at least one record")
        return head

    def records(self) -> list[Record]:
        """All records, oldest first."""
        return [self._log.read(n) for n in range(self.head().sequence + 1)]

    # Writing

    def write_segment(
        self,
        moments: Moments,
        shards: Sequence[Shard],
        n_rows: Sequence[int],
        tally: Mapping[str, np.ndarray] | None = None,
    ) -> Segment:
        """Write moments and their ledger under a fresh name, durably. Nothing counts until it is committed.

        Parameters
        ----------
        moments : Moments
        shards : sequence of Shard
            What was summed, all of one fold and source.
        n_rows : sequence of int
            Rows read from each.
        tally : mapping of str to array, optional
            Other sums over the same rows.
        """
        name = uuid.uuid4().hex
        arrays = {_TALLY + key: np.asarray(value) for key, value in (tally or {}).items()}
        for sums in _SUMS:
            total: GridSum = getattr(moments.to_host(), sums)
            for i, limb in enumerate(total.limbs):
                exponent = total.top - DIGIT_BITS * i
                # Digits times their step, an exact product, so that any tool reads plain numbers.
                array = limb * 2.0**exponent
                arrays[sums + _SUFFIX[exponent]] = array.reshape(1) if array.ndim == 0 else array
        ledger = _ledger_bytes(shards, n_rows)
        attributes = {"n_rows": moments.n_rows, "header": self._first.header}
        write_group(self._objects, f"segments/{name}", attributes, arrays)
        try:
            obstore.put(self._objects, _ledger_key(name), ledger)
            sync_tree(self.path / "segments" / name)
            sync_file(self.path / _ledger_key(name))
        except (OSError, BaseError) as error:
            msg = f"cannot write segment {name}: {str(error).splitlines()[0]}"
            raise StoreError(msg, "a writable store", "check disk space and permissions") from error
        return Segment(
            id=name,
            fold=shards[0].fold(self.header.n_folds),
            source=shards[0].source,
            n_rows=moments.n_rows,
            n_shards=len(shards),
            ledger=hashlib.sha256(ledger).hexdigest(),
        )

    def commit(
        self,
        segments: Iterable[Segment] = (),
        refused: Iterable[Refusal] = (),
        action: str = "accumulate",
    ) -> Record:
        """Make segments count: one put-if-absent of the next log record.

        Raises
        ------
        MismatchError
            If a segment holds a shard that is counted already.
        StoreError
            If the store cannot be written.
        """
        new, skipped = list(segments), list(refused)

        def build(head: Record | None) -> Record:
            if head is None:
                msg = f"{self.path} lost its log"
                raise StoreError(msg, "a store")
            self._refuse_repeats(head, new)
            known = {r.content_id for r in head.refused}
            return Record(
                sequence=head.sequence + 1,
                header=head.header,
                header_at=head.header_at,
                segments=(*head.segments, *new),
                refused=(*head.refused, *(r for r in skipped if r.content_id not in known)),
                action=action,
            )

        record = self._log.append(build)
        assert record is not None
        return record

    def _refuse_repeats(self, head: Record, new: Sequence[Segment]) -> None:
        counted = [shard for segment in head.segments for shard in self.ledger(segment)]
        adding = [shard for segment in new for shard in self.ledger(segment)]
        _, repeats = counted_twice([*counted, *adding])
        if repeats:
            again, first = repeats[0]
            msg = f"{again.key} is counted already, as {first.key} ({len(repeats)} such shards)"
            raise MismatchError(msg, "each content once", "another run may be adding the same data: run again")

    # Reading

    def ledger(self, segment: Segment) -> list[Shard]:
        """Shards of a segment; `planned_rows` is the number of rows that were read.

        Raises
        ------
        StoreError
            If the ledger is missing or altered.
        """
        if segment.id not in self._ledgers:
            key = _ledger_key(segment.id)
            try:
                data = bytes(obstore.get(self._objects, key).bytes())
            except (NotFoundError, FileNotFoundError) as error:
                msg = f"{key} is missing"
                raise StoreError(msg, "the ledger of a committed segment", "restore it from a backup") from error
            if hashlib.sha256(data).hexdigest() != segment.ledger:
                msg = f"{key} was altered: its digest does not match the log"
                raise StoreError(msg, "the bytes that were committed", "restore it from a backup")
            self._ledgers[segment.id] = _ledger_shards(data)
        return self._ledgers[segment.id]

    def counted(self) -> dict[str, Shard]:
        """Every counted shard by its content id."""
        return {s.content_id: s for segment in self.head().segments for s in self.ledger(segment)}

    def read(self, segment: Segment) -> Moments:
        """Moments of one segment.

        Raises
        ------
        StoreError
            If a chunk is missing or its checksum fails, or the segment belongs to another header.
        """
        attributes, arrays = read_group(self._objects, f"segments/{segment.id}", lambda name: not _is_tally(name))
        if attributes.get("header") != self._first.header or attributes.get("n_rows") != segment.n_rows:
            msg = f"segment {segment.id} does not belong to this store's log"
            raise StoreError(msg, f"{segment.n_rows} rows under this header", "restore it from a backup")
        d, k, b = self.header.frame.n_features, self.header.frame.n_targets, tile_size(self.header.frame.n_features)
        shapes = {"weight": (1,), "sum_x": (d,), "gram": (n_tiles(d), b, b), "cross": (k, d)}
        sums = {}
        for name in _SUMS:
            there = [(exponent, name + suffix) for exponent, suffix in _SUFFIX.items() if name + suffix in arrays]
            # Chunks carry checksums, the JSON beside them does not.
            if not there or any(arrays[key].shape != shapes.get(name, (k,)) for _, key in there):
                msg = f"{name} of segment {segment.id} was altered"
                raise StoreError(msg, f"shape {shapes.get(name, (k,))}", "restore it from a backup")
            limbs = tuple(arrays[key] * 2.0**-exponent for exponent, key in there)
            sums[name] = GridSum(tuple(limb[0] for limb in limbs) if name == "weight" else limbs, there[0][0])
        return Moments(self.header.frame, self.header.targets.one_hot, segment.n_rows, **sums)

    def tallies(self) -> Iterator[dict[str, np.ndarray]]:
        """Tally arrays of each live segment."""
        for segment in self.head().segments:
            _, arrays = read_group(self._objects, f"segments/{segment.id}", _is_tally)
            yield {name.removeprefix(_TALLY): array for name, array in arrays.items()}

    def moments(self, keep: Callable[[Segment], bool] = lambda _: True) -> Moments:
        """Sum of all live segments, or of those that `keep` accepts, one in memory at a time."""
        total = Moments.zeros(self.header.frame, self.header.targets, self.header.precision)
        for segment in self.head().segments:
            if keep(segment):
                total = total + self.read(segment)
        return total

    def fold_moments(self) -> dict[int, Moments]:
        """Moments of each fold that has rows."""
        folds = sorted({segment.fold for segment in self.head().segments})
        return {fold: self.moments(lambda s, fold=fold: s.fold == fold) for fold in folds}  # type: ignore[misc]


def _is_tally(name: str) -> bool:
    return name.startswith(_TALLY)


def _ledger_key(segment_id: str) -> str:
    # Beside the segments, not inside: Zarr tools take a stray file in a group for damage.
    return f"ledgers/{segment_id}.parquet"


def _ledger_bytes(shards: Sequence[Shard], n_rows: Sequence[int]) -> bytes:
    rows = [
        {
            "content_id": bytes.fromhex(s.content_id),
            "key": s.key,
            "uri": s.uri,
            "start": s.start,
            "stop": s.stop,
            "size": s.size,
            "n_rows": n,
            "source": s.source,
        }
        for s, n in zip(shards, n_rows, strict=True)
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_LEDGER), sink, compression="zstd")
    return sink.getvalue()


def _ledger_shards(data: bytes) -> list[Shard]:
    table = pq.read_table(io.BytesIO(data), schema=_LEDGER)
    return [
        Shard(content_id=row["content_id"].hex(), planned_rows=row.pop("n_rows"), **{k: row[k] for k in _COPIED})
        for row in table.to_pylist()
    ]
