"""Files wherever they lie: on a local disk, or in an object store. Floor 4.

Objects are read by ranges, a bounded number of bytes at a time, and never copied to disk. Credentials, region and
endpoint come from the environment, under the names that their vendors use, as for stores.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from functools import cache
from glob import has_magic
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError

from streamfit.corpus.base import Files, content_ids, split_of, stamp_of
from streamfit.corpus.hashing import hashes_of
from streamfit.errors import CorpusError, ShardChangedError, StoreError
from streamfit.identity import hasher
from streamfit.plan import Shard
from streamfit.store.place import Place, first_line

_AHEAD = 2**22
"""Bytes that are fetched at a time."""


class Found(NamedTuple):
    """A file of a corpus: its relative path, and where to read it."""

    name: str
    uri: str


def found(files: Files, endings: Sequence[str]) -> list[Found]:
    """Files of a corpus, sorted by name.

    Parameters
    ----------
    files : Files
        Its root may be an address such as ``s3://bucket/prefix``, or a pattern below one.
    endings : sequence of str
        What names must end in, unless the root is one file or `include` says what is wanted.

    Raises
    ------
    CorpusError
        If there is nothing.
    """
    pairs, alone = _all(files)
    if alone or files.include or has_magic(files.root):
        return pairs
    kept = [pair for pair in pairs if pair.name.lower().endswith(tuple(endings))]
    if not kept:
        msg = f"none of {len(pairs)} files under {files.root} ends in {', '.join(endings)}"
        raise CorpusError(msg, "at least one", "check `root` and `kind`, or name the files in `include`")
    return kept


def listed(files: Files) -> list[Found]:
    """Files of a corpus, sorted by name, whatever their names end in.

    Raises
    ------
    CorpusError
        If there is nothing.
    """
    return _all(files)[0]


def local_path(where: str) -> str:
    """What follows ``file://``, the address of a local file; anything else as it is.

    Examples
    --------
    >>> local_path("file:///data/june%202026.csv"), local_path("s3://bucket/june.csv"), local_path("june.csv")
    ('/data/june 2026.csv', 's3://bucket/june.csv', 'june.csv')
    """
    return unquote(urlsplit(where).path) if where.startswith("file://") else where


def _all(files: Files) -> tuple[list[Found], bool]:
    """Files of a corpus, and whether its root is one file."""
    root = local_path(files.root)
    if "://" in root:
        return _objects(files)
    pairs = [Found(name, str(path)) for name, path in replace(files, root=root).find()]
    return pairs, Path(root).expanduser().is_file()


def _objects(files: Files) -> tuple[list[Found], bool]:
    bucket, prefix = _split(files.root)
    literal = prefix if not has_magic(prefix) else prefix[: min(prefix.find(c) for c in "*?[" if c in prefix)]
    with _reading(files.root):
        folder = literal if literal.endswith("/") or not literal else literal.rpartition("/")[0]
        listed = [meta["path"] for batch in obstore.list(_bucket(bucket).objects, folder or None) for meta in batch]
    alone = prefix in listed
    if alone:
        names = [(prefix.rpartition("/")[2], prefix)]
    elif has_magic(prefix):
        cut = len(literal.rpartition("/")[0]) + bool("/" in literal)
        names = [(path[cut:], path) for path in listed if fnmatch(path, prefix)]
    else:
        below = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        names = [(path[len(below) :], path) for path in listed if path.startswith(below)]
    kept = [
        Found(name, f"{bucket}/{path}")
        for name, path in sorted(names)
        if _passes(files, name) and (files.split is None or split_of(name, files.fractions) == files.split)
    ]
    if not kept:
        msg = f"no object of {len(names)} at {files.root} is left by include/exclude"
        raise CorpusError(msg, "at least one", "check the address and the patterns")
    return kept, alone


def _passes(files: Files, name: str) -> bool:
    def hit(pattern: str) -> bool:
        return fnmatch(name, pattern) if "/" in pattern else any(fnmatch(part, pattern) for part in name.split("/"))

    return (not files.include or any(map(hit, files.include))) and not any(map(hit, files.exclude))


def _split(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


@cache
def _bucket(url: str) -> Place:
    try:
        return Place(url)
    except StoreError as error:
        raise CorpusError(error.got, error.expected.replace("a local folder, or ", ""), error.remedy) from error


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        msg = f"{what}: {first_line(error)}"
        raise CorpusError(msg, "a readable file", "check the address, credentials and network") from error


class _Object(io.RawIOBase):
    """An object as a file that reads ranges."""

    def __init__(self, uri: str) -> None:
        self._uri, (bucket, self._key) = uri, _split(uri)
        self._place = _bucket(bucket)
        with _reading(uri):
            self._size = int(obstore.head(self._place.objects, self._key)["size"])
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, into: Any) -> int:
        length = max(0, min(len(into), self._size - self._at))
        if length:
            with _reading(self._uri):
                part = obstore.get_range(self._place.objects, self._key, start=self._at, length=length)
            into[:length] = memoryview(part)
            self._at += length
        return length


def open_file(uri: str) -> BinaryIO:
    """A file opened for reading.

    Raises
    ------
    CorpusError
        If it cannot be read.
    """
    if "://" in uri:
        return io.BufferedReader(_Object(uri), _AHEAD)
    with _reading(uri):
        return Path(uri).open("rb")


def put_file(uri: str, path: Path) -> None:
    """Put a local file in an object store, under a name that may be taken.

    Raises
    ------
    StoreError
        If it cannot be written.
    """
    bucket, key = _split(uri)
    try:
        obstore.put(_bucket(bucket).objects, key, path)
    except (BaseError, OSError) as error:
        msg = f"cannot write {uri}: {first_line(error)}"
        raise StoreError(msg, "a writable address", "check the address, credentials and network") from error


def is_empty(uri: str) -> bool:
    """Whether nothing lies below an address of an object store.

    Raises
    ------
    CorpusError
        If it cannot be asked.
    """
    bucket, prefix = _split(uri)
    with _reading(uri):
        return not any(len(batch) for batch in obstore.list(_bucket(bucket).objects, f"{prefix}/" if prefix else None))


def size_of(uri: str) -> int:
    """Bytes of a file.

    Raises
    ------
    CorpusError
        If it cannot be read.
    """
    with open_file(uri) as file:
        return file.seek(0, io.SEEK_END)


def stamp(uri: str) -> int:
    """A number by which to see later that a file has not changed; see `Shard.stamp`."""
    if "://" not in uri:
        with _reading(uri):
            return stamp_of(Path(uri))
    bucket, key = _split(uri)
    with _reading(uri):
        meta = obstore.head(_bucket(bucket).objects, key)
    told = f"{meta['e_tag']} {meta['version']} {meta['last_modified'].isoformat()} {meta['size']}"
    return int(hashlib.sha256(told.encode()).hexdigest()[:15], 16)


def is_stamped(shard: Shard) -> bool:
    """Whether nobody has touched a shard's file since its content was hashed.

    Raises
    ------
    ShardChangedError
        If the file is gone.
    """
    try:
        if "://" in shard.uri:
            return stamp(shard.uri) == shard.stamp
        return bool(shard.stamp) and Path(shard.uri).stat().st_ctime_ns == shard.stamp
    except (CorpusError, OSError) as error:
        msg = f"{shard.key}: {first_line(error)}"
        raise ShardChangedError(msg, "the file that was found when the corpus was listed", "run again") from error


def hashes(parts: Sequence[tuple[str, int, int]]) -> list[str]:
    """BLAKE3 of byte ranges of files, hexadecimal; every byte is read once.

    Parameters
    ----------
    parts : sequence of (uri, start, stop)

    Raises
    ------
    CorpusError
        If a file cannot be read.
    """
    local = iter(content_ids([(Path(uri), start, stop) for uri, start, stop in parts if "://" not in uri]))
    there = [part for part in parts if "://" in part[0]]
    stamps = {uri: stamp(uri) for uri in dict.fromkeys(uri for uri, *_ in there)}
    fetched = iter(hashes_of(_hash_object, there, [stamps[uri] for uri, *_ in there]))
    return [next(fetched) if "://" in uri else next(local) for uri, *_ in parts]


def _hash_object(uri: str, start: int, stop: int) -> str:
    digest = hasher()
    with open_file(uri) as file:
        file.seek(start)
        while start < stop and (block := file.read(min(_AHEAD, stop - start))):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def is_missing(error: BaseException) -> bool:
    """Whether an error says that there is no such file."""
    return isinstance(error.__cause__, FileNotFoundError | NotFoundError)
