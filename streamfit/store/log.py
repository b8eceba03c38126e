"""The commit log: one JSON record a commit, each put only if its number is still free.

Floor 4: imports errors. Putting record n+1 is the whole transaction.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import ObjectStore

from streamfit.errors import StoreError

SCHEMA_VERSION = 1


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
    """

    id: str
    fold: int
    source: str
    n_rows: int
    n_shards: int
    ledger: str


@dataclass(frozen=True)
class Refusal:
    """A shard that was skipped because it could not be counted."""

    key: str
    content_id: str
    reason: str


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
    action, who, when, commit : str
        What was done, by which user and process, at which time (UTC), and a random name that tells this
        commit from any other.
    """

    sequence: int
    header: str
    header_at: str
    segments: tuple[Segment, ...] = ()
    refused: tuple[Refusal, ...] = ()
    action: str = "create"
    who: str = ""
    when: str = ""
    commit: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def n_rows(self) -> int:
        """Rows counted in all live segments."""
        return sum(segment.n_rows for segment in self.segments)

    def to_bytes(self) -> bytes:
        """JSON with the schema version and a digest of its own body."""
        body = {"version": SCHEMA_VERSION, **asdict(self)}
        return json.dumps({"body": body, "sha256": _digest(body)}, indent=1).encode()

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
        if _digest(body) != digest:
            msg = f"log record {where} was altered: its digest does not match"
            raise StoreError(msg, "the bytes that were committed", "restore that file from a backup")
        if body.pop("version") != SCHEMA_VERSION:
            msg = f"log record {where} of another format version"
            raise StoreError(msg, f"version {SCHEMA_VERSION}", "use the streamfit release that wrote it")
        body["segments"] = tuple(Segment(**s) for s in body["segments"])
        body["refused"] = tuple(Refusal(**r) for r in body["refused"])
        return cls(**body)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class Log:
    """The records under `_log/` of one store.

    Parameters
    ----------
    objects : obstore store
    settle : callable
        Called with the key of a record that was just put, to make it durable.
    """

    def __init__(self, objects: ObjectStore, settle: Callable[[str], None]) -> None:
        self._objects, self._settle = objects, settle

    def head(self) -> Record | None:
        """The newest record, or None where there is no log."""
        names = [m["path"] for batch in obstore.list(self._objects, "_log/") for m in batch]
        numbers = sorted(int(stem) for n in names if (stem := n.removeprefix("_log/")[:-5]).isdigit())
        if not numbers:
            return None
        if numbers != list(range(len(numbers))):
            missing = sorted(set(range(numbers[-1] + 1)) - set(numbers))
            msg = f"log records {missing[:5]} are missing"
            raise StoreError(msg, "an unbroken log", "restore them from a backup")
        return self.read(numbers[-1])

    def read(self, sequence: int) -> Record:
        """One record.

        Raises
        ------
        StoreError
            If it is missing or damaged.
        """
        key = record_key(sequence)
        try:
            data = bytes(obstore.get(self._objects, key).bytes())
        except (NotFoundError, FileNotFoundError) as error:
            msg = f"log record {key} is missing"
            raise StoreError(msg, "an unbroken log", "restore it from a backup") from error
        record = Record.from_bytes(data, key)
        if record.sequence != sequence:
            msg = f"log record {key} says that it is number {record.sequence}"
            raise StoreError(msg, str(sequence), "restore that file from a backup")
        return record

    def append(self, build: Callable[[Record | None], Record | None]) -> Record | None:
        """Commit what `build` makes of the newest record; None from it commits nothing.

        If another writer takes the number first, `build` is asked again with that writer's record; it must
        then check again whatever it checked. A put that failed but landed is recognised by its name.

        Raises
        ------
        StoreError
            If the store cannot be written.
        """
        while True:
            record = build(self.head())
            if record is None:
                return None
            record = replace(record, who=_who(), when=datetime.now(UTC).isoformat(timespec="seconds"))
            key = record_key(record.sequence)
            try:
                obstore.put(self._objects, key, record.to_bytes(), mode="create")
            except AlreadyExistsError:
                pass
            except (BaseError, OSError) as error:
                if not self._landed(record):
                    msg = f"cannot write log record {key}: {str(error).splitlines()[0]}"
                    raise StoreError(msg, "a writable store", "check disk space and permissions") from error
            if self._landed(record):
                self._settle(key)
                return record

    def _landed(self, record: Record) -> bool:
        try:
            return self.read(record.sequence).commit == record.commit
        except StoreError:
            return False


def record_key(sequence: int) -> str:
    """Object name of a record."""
    return f"_log/{sequence:010d}.json"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}:{os.getpid()}"
