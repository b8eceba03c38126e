"""The commit log: one JSON record a commit, each put only if its number is still free.

Floor 4: imports errors. Putting record n+1 is the whole transaction.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from obstore.exceptions import AlreadyExistsError, BaseError

from streamfit.errors import StoreError
from streamfit.store.place import Place, first_line

SCHEMA_VERSION = 4
MAX_LIVE = 64
"""Live segments that a store holds at most, unless it has more kinds of them."""
KEEP = 16
"""Commits before the newest whose segments are kept, so that one can go back to them."""
_ATTEMPTS = 5
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Segment:
    """A live segment, as the log names it.

    Parameters
    ----------
    id : str
        Its folder under `segments/`.
    fold : int
    source : str
    n_rows, n_shards : int
    ledger : str
        SHA-256 of its ledger file.
    labels : tuple of (str, str)
        Besides the source: `time`, and any other, sorted by name. All its shards carry them.
    """

    id: str
    fold: int
    source: str
    n_rows: int
    n_shards: int
    ledger: str
    labels: Labels = ()

    @property
    def kind(self) -> tuple[int, str, Labels]:
        """What segments must have in common to be merged: fold, source and labels."""
        return self.fold, self.source, self.labels

    def label(self, name: str) -> str | None:
        """Value of a label; the source is one as well."""
        return self.source if name == "source" else dict(self.labels).get(name)


@dataclass(frozen=True)
class Refusal:
    """A shard that was skipped because it could not be counted."""

    key: str
    content_id: str
    reason: str


@dataclass(frozen=True)
class Removal:
    """What one commit took out: shards, or rows of them.

    Parameters
    ----------
    id : str
        Name of its file under `removals/`, which lists shards and positions of rows, but no row.
    digest : str
        SHA-256 of that file.
    kind : {'forgotten', 'replaced'}
        A forgotten shard is not counted again unless that is asked for.
    sequence : int
        The commit.
    why : str
        The reason that was given.
    n_shards, n_rows : int
        Shards that are gone or smaller, and rows that left.
    segments : tuple of str
        Segments that held them; they are no longer live.
    who, when : str
        By whom and when, also after a merge into another store.
    """

    id: str
    digest: str
    kind: Literal["forgotten", "replaced"]
    sequence: int
    why: str
    n_shards: int
    n_rows: int
    segments: tuple[str, ...]
    who: str = ""
    when: str = ""


@dataclass(frozen=True)
class Pin:
    """A commit that collection must leave readable, under a name."""

    name: str
    sequence: int


@dataclass(frozen=True)
class Record:
    """One commit: the whole state of the store after it.

    Parameters
    ----------
    sequence : int
        Its place in the log, from 0.
    header : str
        Content hash of the header that every segment was made with.
    header_at : str
        Folder of that header.
    segments : tuple of Segment
        Live after this commit.
    refused : tuple of Refusal
        Shards skipped so far, each once.
    removed : tuple of Removal
        Everything that was ever taken out.
    pins : tuple of Pin
    max_live : int
        Bound on live segments; see `bound`.
    keep : int
        Commits before the newest that can be gone back to.
    horizon : int
        No commit before this one can be gone back to, however many are kept.
    action, who, when, commit : str
        What was done, by which user and process, at which time (UTC), and a random name that tells this
        commit from any other.
    """

    sequence: int
    header: str
    header_at: str
    segments: tuple[Segment, ...] = ()
    refused: tuple[Refusal, ...] = ()
    removed: tuple[Removal, ...] = ()
    pins: tuple[Pin, ...] = ()
    max_live: int = MAX_LIVE
    keep: int = KEEP
    horizon: int = 0
    action: str = "create"
    who: str = ""
    when: str = ""
    commit: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def n_rows(self) -> int:
        """Rows counted in all live segments."""
        return sum(segment.n_rows for segment in self.segments)

    @property
    def bound(self) -> int:
        """Live segments never number more: `max_live`, or twice the kinds of them where those are more."""
        return max(self.max_live, 2 * len({segment.kind for segment in self.segments}))

    @property
    def oldest(self) -> int:
        """First commit that can be gone back to without a pin."""
        return max(self.horizon, self.sequence - self.keep)

    def readable(self, sequence: int) -> bool:
        """Whether the segments of a commit are kept."""
        pinned = any(pin.sequence == sequence for pin in self.pins)
        return pinned or self.oldest <= sequence <= self.sequence

    def to_bytes(self) -> bytes:
        """JSON with the schema version and a digest of its own body."""
        # Fields as they are: `asdict` would copy every segment for each commit. JSON writes tuples as lists.
        body = {"version": SCHEMA_VERSION, **vars(self)}
        for name in ("segments", "refused", "removed", "pins"):
            body[name] = [vars(item) for item in body[name]]
        text = _canonical(body)
        return f'{{"body": {text}, "sha256": "{hashlib.sha256(text.encode()).hexdigest()}"}}\n'.encode()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Record:
        """Read a record back.

        Raises
        ------
        StoreError
            If it is truncated, altered, or of another version.
        """
        try:
            outer = json.loads(data)
            body, digest = outer["body"], outer["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            msg = f"log record {where} is truncated or not a record"
            raise StoreError(msg, "a whole JSON record", "restore that file from a backup") from error
        if hashlib.sha256(_canonical(body).encode()).hexdigest() != digest:
            msg = f"log record {where} was altered: its digest does not match"
            raise StoreError(msg, "the bytes that were committed", "restore that file from a backup")
        if body.pop("version") != SCHEMA_VERSION:
            msg = f"log record {where} of another format version"
            raise StoreError(msg, f"version {SCHEMA_VERSION}", "use the streamfit release that wrote it")
        try:
            body["segments"] = tuple(
                Segment(**{**s, "labels": tuple((n, v) for n, v in s["labels"])}) for s in body["segments"]
            )
            body["refused"] = tuple(Refusal(**r) for r in body["refused"])
            body["removed"] = tuple(Removal(**{**r, "segments": tuple(r["segments"])}) for r in body["removed"])
            body["pins"] = tuple(Pin(**p) for p in body["pins"])
            return cls(**body)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"log record {where} with other fields than version {SCHEMA_VERSION} has ({error})"
            raise StoreError(msg, "a record of this version", "use the streamfit release that wrote it") from error


def _canonical(body: dict[str, Any]) -> str:
    """The text that the digest of a record is taken of."""
    return json.dumps(body, sort_keys=True)


class Log:
    """The records under `_log/` of one store.

    Parameters
    ----------
    place : Place
    who : str, optional
        Author of commits; user, host and process without it.
    """

    def __init__(self, place: Place, who: str | None = None) -> None:
        self._place, self._author = place, who
        self._newest: Record | None = None

    def head(self) -> Record | None:
        """The newest record, or None where there is no log.

        Raises
        ------
        StoreError
            If records are missing or damaged.
        """
        known = self._newest.sequence if self._newest else 0
        # From the newest that is known: a log of years is listed whole once a process, not once a commit.
        after = record_key(known - 1) if known else None
        numbers = self._numbers(after)
        if not numbers and not known:
            return None
        between = set(range(known, max(numbers, default=known) + 1)) - set(numbers)
        # A folder that is listed while others write to it may show a record, but not the one before.
        missing = sorted(n for n in between if not self._place.exists(record_key(n)))
        if missing:
            msg = f"log records {missing[:5]} are missing"
            raise StoreError(msg, "an unbroken log", "restore them from a backup")
        newest = max(numbers, default=known)
        if self._newest is None or newest != known:
            self._newest = self.read(newest)
        return self._newest

    def _numbers(self, after: str | None) -> list[int]:
        names = [name.removeprefix("_log/") for name in self._place.names("_log/", after)]
        return sorted(int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit())

    def read(self, sequence: int) -> Record:
        """One record.

        Raises
        ------
        StoreError
            If it is missing or damaged.
        """
        key = record_key(sequence)
        data = self._place.get(key)
        if data is None:
            msg = f"log record {key} is missing"
            raise StoreError(msg, "an unbroken log", "restore it from a backup")
        record = Record.from_bytes(data, key)
        if record.sequence != sequence:
            msg = f"log record {key} says that it is number {record.sequence}"
            raise StoreError(msg, str(sequence), "restore that file from a backup")
        return record

    def append(self, build: Callable[[Record | None], Record | None]) -> Record | None:
        """Commit what `build` makes of the newest record; None from it commits nothing.

        If another writer takes the number first, `build` is asked again with that writer's record; it must
        look at everything anew. A put that failed is tried again with the same bytes, for it may yet land.

        Raises
        ------
        StoreError
            If the record cannot be written.
        """
        while True:
            head = self.head()
            record = build(head)
            if record is None:
                return None
            who = _who() if self._author is None else self._author
            when = datetime.now(UTC).isoformat(timespec="seconds")
            removed = tuple(r if r.when else replace(r, who=who, when=when) for r in record.removed)
            record = replace(record, who=who, when=when, removed=removed)
            if self._put(record):
                self._newest = record
                return record

    def _put(self, record: Record) -> bool:
        """Whether the record landed; False if another has its number."""
        key, data = record_key(record.sequence), record.to_bytes()
        for attempt in range(_ATTEMPTS):
            try:
                self._place.put_new(key, data)
            except AlreadyExistsError:
                pass
            except (BaseError, OSError) as error:
                there = self._commit_at(record.sequence)
                if there is None:
                    transient = self._place.local is None and attempt + 1 < _ATTEMPTS
                    if transient:  # S3 answers 409 to creates that race
                        time.sleep(0.1 * 2**attempt)
                        continue
                    msg = f"cannot write log record {key}: {first_line(error)}"
                    raise StoreError(msg, "a writable store", "check disk space and permissions") from error
                return there == record.commit
            # The name of the commit is in the bytes: equal ones are ours, and need not be parsed.
            return self._place.get(key) == data or self._commit_at(record.sequence) == record.commit
        return False

    def _commit_at(self, sequence: int) -> str | None:
        if not self._place.exists(record_key(sequence)):
            return None
        return self.read(sequence).commit


def record_key(sequence: int) -> str:
    """Object name of a record."""
    return f"_log/{sequence:010d}.json"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"
