"""What a corpus is: files found, cut into shards with a content id, read as batches of rows.

Floor 4: imports plan and errors.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import translate
from glob import has_magic
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np

from streamfit.corpus.hashing import hashes_of
from streamfit.errors import ConfigError, CorpusError, ShardChangedError
from streamfit.frame import BLOCK_ROWS
from streamfit.identity import content_id, hasher
from streamfit.merging import LargeTables
from streamfit.plan import Shard

_SETTLED_NS = 2 * 10**9
_HASHED_BYTES = 2**18
"""Read at a time for hashing: what is read is hashed while it is in the cache."""
SPLITS = ("train", "validation", "test")
Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Rows:
    """A batch of rows of one shard: `BLOCK_ROWS` of them but for the last.

    Parameters
    ----------
    x : array of shape (n_rows, n_inputs), or scipy.sparse.csr_array of hashed features
    y : array of shape (n_rows, n_targets), or integer (n_rows,) of class ids
    weights : array of shape (n_rows,), optional
    """

    x: Any
    y: np.ndarray
    weights: np.ndarray | None = None


class Tally(ABC):
    """Another sum over the same rows, kept in the same segments and so counted exactly once as well."""

    @abstractmethod
    def add(self, rows: Rows) -> None:
        """Count a block of rows."""

    @abstractmethod
    def tables(self) -> LargeTables:
        """The sum as tables by name: integer keys of shape (n, width), distinct and sorted, and int64 counts."""


class Source(ABC):
    """A corpus as the engine sees it. Instances travel to workers, so they hold settings, not open files."""

    @abstractmethod
    def shards(self) -> list[Shard]:
        """All shards, in the order of their keys.

        Raises
        ------
        CorpusError
            If nothing is found or it cannot be read.
        """

    @abstractmethod
    def read(self, shard: Shard) -> Iterator[Rows]:
        """Decode and check the rows of a shard: those it selects, without those it leaves out.

        Raises
        ------
        ShardError
            Naming shard and row, if a value cannot be used.
        """

    @abstractmethod
    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        """Positions of the shard's rows (documents, for text) whose value in a column is one of some.

        Parameters
        ----------
        shard : Shard
        column : str
        values : frozenset of str
            As strings: `true`, `3`, `2026-11-23`.

        Returns
        -------
        positions : tuple of int
            As in `Shard.without`: counted from the start of the part, ascending; of the rows that the shard selects
            and does not leave out already.

        Raises
        ------
        ShardChangedError
            If the content is no longer the shard's.
        ShardError
            If there is no such column.
        """

    @property
    def is_weighted(self) -> bool:
        """Whether its rows have weights, for the plan of memory."""
        return False

    @property
    def row_item(self) -> int:
        """Bytes of one number of `Rows.x`, for the plan of memory."""
        return 8

    def decode_bytes(self, shards: Sequence[Shard], row_bytes: int) -> int:
        """Most memory that decoding shards one after another takes, beside the blocks that it gives.

        Parameters
        ----------
        shards : sequence of Shard
        row_bytes : int
            Bytes of a row's numbers.
        """
        return max((shard.size for shard in shards), default=0)

    def blocks_held(self, shard: Shard) -> int:
        """Blocks of a shard that lie in one piece of memory, and may as well wait together; 0 if each has its own."""
        return 0

    def tally(self) -> Tally | None:
        """A fresh tally to keep beside the moments of a group, if this kind of corpus has one."""
        return None

    def tally_room(self, n_rows: int) -> int:
        """Most memory that a tally of so many rows takes, for the plan."""
        return 0


@dataclass(frozen=True)
class Files:
    """Files of a corpus: a directory, a glob or one file, filtered by patterns and by a hashed split.

    Parameters
    ----------
    root : str
        A directory (searched recursively, links to folders not followed), a glob pattern, or a file.
    include, exclude : tuple of str
        Patterns on the path relative to `root`, as in fnmatch. A pattern without a slash is tried on every
        component of the path, so `test` leaves out whole directories of that name.
    split : {'train', 'validation', 'test'}, optional
        Keep the files of one part: a hash of the relative path decides, so that it is the same everywhere.
    fractions : tuple of float
        Shares of train, validation and test.
    """

    root: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)

    def find(self) -> list[tuple[str, Path]]:
        """Relative and absolute path of each file, sorted.

        Raises
        ------
        CorpusError
            If the root does not exist or no file is left.
        """
        root = Path(self.root).expanduser()
        if root.is_dir():
            pairs = list(self._walk(root))
        elif root.is_file():
            pairs = [(root.name, root)]
        elif has_magic(self.root):
            base = Path(*_before_magic(root.parts))
            found = [p for p in base.glob(str(root.relative_to(base))) if p.is_file()]
            stores = {f for f in {f for p in found for f in p.parents} if f.is_relative_to(base) and _is_store(f)}
            pairs = [(p.relative_to(base).as_posix(), p) for p in found if stores.isdisjoint(p.parents)]
        else:
            msg = f"no file or directory at {self.root}"
            raise CorpusError(msg, "a directory, a file or a glob pattern", "check the path in the config")
        wanted, unwanted = _Patterns(self.include), _Patterns(self.exclude)
        kept = [
            (name, _resolved(path))
            for name, path in pairs
            if (not self.include or wanted.match(name))
            and not unwanted.match(name)
            and (self.split is None or split_of(name, self.fractions) == self.split)
        ]
        if not kept:
            part = f" in the {self.split} split" if self.split else ""
            msg = f"no file of {len(pairs)} under {self.root} is left by include/exclude{part}"
            remedy = "check the path and the patterns"
            if self.split and replace(self, split=None).find():
                remedy = "a hash of paths puts none there: give the part a larger share in `split`, or name its files"
            raise CorpusError(msg, "at least one", remedy)
        return sorted(kept)

    def of_rows(self) -> list[tuple[str, Path]]:
        """As `find`, without what writers of tables leave beside the rows: _SUCCESS, .part-0.parquet.crc.

        Raises
        ------
        CorpusError
            If the root does not exist or no file is left.
        """
        pairs = self.find()
        return [pair for pair in pairs if not _is_beside(pair[0])] or pairs

    def _walk(self, root: Path) -> Iterator[tuple[str, Path]]:
        unwanted = _Patterns(tuple(p for p in self.exclude if "/" not in p))
        for folder, names, files in os.walk(root):
            # A store may well lie beside the data that it sums; it is not data.
            if _is_store(Path(folder)):
                names.clear()
                continue
            names[:] = [name for name in names if not unwanted.match(name)]
            for name in files:
                path = Path(folder, name)
                yield path.relative_to(root).as_posix(), path


def _is_beside(name: str) -> bool:
    last = name.rpartition("/")[2]
    return last.startswith(".") or (last.startswith("_") and not last.endswith(".parquet"))


def _resolved(path: Path) -> Path:
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links, before Python 3.13
        msg = f"{path}: a link to nothing"
        raise CorpusError(msg, "a readable file", "remove the link, or leave it out with `exclude`") from error


def _is_store(folder: Path) -> bool:
    return (folder / "_log" / "0000000000.json").is_file()


def _before_magic(parts: Sequence[str]) -> list[str]:
    plain = []
    for part in parts:
        if has_magic(part):
            break
        plain.append(part)
    return plain or ["."]


class _Patterns:
    """Several patterns compiled into two expressions, since each is tried on every file there is."""

    def __init__(self, patterns: tuple[str, ...]) -> None:
        self._path = _any_of([p for p in patterns if "/" in p])
        self._part = _any_of([p for p in patterns if "/" not in p])

    def match(self, name: str) -> bool:
        if self._path is not None and self._path.match(name):
            return True
        return self._part is not None and any(self._part.match(part) for part in name.split("/"))


def _any_of(patterns: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(translate, patterns))) if patterns else None


def split_of(name: str, fractions: tuple[float, float, float]) -> Split:
    """Part of the corpus that a document belongs to, by a hash of its name.

    Raises
    ------
    ConfigError
        If the fractions are negative or do not add up to 1.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1.0) > 1e-9:
        msg = f"split fractions {fractions}"
        raise ConfigError(msg, "three shares that add up to 1")
    place = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12
    if place < fractions[0]:
        return "train"
    return "validation" if place < fractions[0] + fractions[1] else "test"


def content_ids(parts: Sequence[tuple[Path, int, int]]) -> list[str]:
    """BLAKE3 of byte ranges of files.

    Parameters
    ----------
    parts : sequence of (path, start, stop)

    Raises
    ------
    CorpusError
        If a file cannot be read.
    """
    # Its time of change is looked at, too, which nobody can set back, as a stamp goes by it.
    stamps = [file_stamp(path) for path, _, _ in parts]
    return hashes_of(_hash_file, [(str(path), start, stop) for path, start, stop in parts], stamps)


def file_stamp(path: Path) -> tuple[int, int, int]:
    """Size, and times of modification and change: another stamp, other content."""
    try:
        found = path.stat()
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise CorpusError(msg, "a readable file", "check its permissions, or leave it out") from error
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def stamp_of(path: Path) -> int:
    """Time of a file's last change, by which to see later that it has not changed again; see `Shard.stamp`.

    0 where it is so young that another change could fall into the same tick of the file system's clock: git's rule for
    its index ("racily clean" entries).
    """
    changed = path.stat().st_ctime_ns
    return changed if time.time_ns() - changed > _SETTLED_NS else 0


def _hash_file(path: str, start: int, stop: int) -> str:
    return hash_range(Path(path), start, stop)


def hash_range(path: Path, start: int, stop: int) -> str:
    """BLAKE3 of the bytes [start, stop) of a file, hexadecimal."""
    digest, room = hasher(), memoryview(bytearray(min(_HASHED_BYTES, max(1, stop - start))))
    with _readable(path) as file:
        file.seek(start)
        left = stop - start
        while left > 0 and (n := file.readinto(room[:left])):
            digest.update(room[:n])
            left -= n
    return digest.hexdigest()


@contextmanager
def _readable(path: Path) -> Iterator[FileIO]:
    try:
        with path.open("rb", buffering=0) as file:
            yield file
    except OSError as error:
        msg = f"{path}: {error.strerror}"
        raise CorpusError(msg, "a readable file", "check its permissions, or leave it out") from error


def _bytes_of(path: Path, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file; fewer where it ends before."""
    with _readable(path) as file:
        file.seek(start)
        parts, left = [], stop - start
        while left > 0 and (part := file.read(left)):  # a system reads 2 GB at once at most
            parts.append(part)
            left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_unchanged(shard: Shard) -> bytes:
    """Bytes of the part that a shard is in, checked against the content id that was planned.

    Raises
    ------
    ShardChangedError
        If they are no longer what was hashed, or no longer there.
    """
    try:
        data = _bytes_of(Path(shard.uri), shard.start, shard.stop)
    except CorpusError as error:
        msg = f"{shard.key}: {error.got}"
        raise ShardChangedError(msg, "the file that was found when the run began", "run again") from error
    got = content_id(data)
    if got != shard.bytes_id:
        msg = f"{shard.key}: content changed while the corpus was read (now {got[:12]})"
        raise ShardChangedError(msg, f"content {shard.bytes_id[:12]}", "run again once nobody writes to it")
    return data


def blocks_of(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None) -> Iterator[Rows]:
    """Cut a shard's rows into batches of `BLOCK_ROWS`."""
    for lo in range(0, len(x), BLOCK_ROWS):
        part = slice(lo, lo + BLOCK_ROWS)
        yield Rows(x[part], y[part], None if weights is None else weights[part])
