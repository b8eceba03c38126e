"""Arrays on disk as tables: folders of .npy files, and groups of Zarr arrays, a column each, rows first. Floor 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import zarr
from obstore.exceptions import BaseError
from zarr.storage import LocalStore, ObjectStore

from streamfit.corpus.base import Files
from streamfit.corpus.openings import is_missing
from streamfit.corpus.recipe import date_part
from streamfit.corpus.row_ranges import RowRanges, batch_of
from streamfit.corpus.values import column_of
from streamfit.errors import CorpusError
from streamfit.store.place import Place, first_line

ARRAYS = ("npy", "zarr")


@dataclass(frozen=True)
class ArrayFiles(RowRanges):
    """Columns that are arrays: of shape (n_rows,), or (n_rows, ...) for several features each.

    Content ids are made of the columns that are read and of all others with one dimension, such as ids.

    Parameters
    ----------
    files : Files
        For 'npy' a folder with ``<column>.npy`` for each column, or a folder of such folders; for 'zarr' a group.
    kind : {'npy', 'zarr'}
    """

    files: Files
    kind: str = "npy"

    def origin(self) -> dict[str, Any]:
        return {"kind": self.kind, "shard_rows": self.shard_rows}

    def sets(self) -> list[tuple[str, str, int]]:
        found = []
        for name, uri in self._folders():
            lengths = {column: length_of(self.kind, uri, column) for column in self._needed}
            if len(set(lengths.values())) > 1:
                told = ", ".join(f"{column} has {n:,}" for column, n in lengths.items())
                msg = f"{uri}: arrays of several lengths: {told}"
                raise CorpusError(msg, "as many rows in each")
            found.append((name, uri, next(iter(lengths.values()))))
        return found

    def _folders(self) -> list[tuple[str, str]]:
        if self.kind == "zarr":
            return [(self.files.root.rstrip("/").rpartition("/")[2], _absolute(self.files.root))]
        first = f"{self._needed[0]}.npy"
        found = [(name, path.parent) for name, path in self.files.find() if path.name == first]
        if not found:
            msg = f"no {first} in {self.files.root} or below it"
            raise CorpusError(msg, "a .npy file for each column", "check `root` and the columns in [corpus]")
        own = Path(_absolute(self.files.root)).name
        return [(name.rpartition("/")[0] or own, str(folder)) for name, folder in found]

    @property
    def _needed(self) -> list[str]:
        labels = [column_of(key)[0] for key in self.labels.keys]
        hashed = [column_of(name)[0] for name in self.features] if self.hashed is not None else []
        plain = self.recipe.columns if self.hashed is None else self.columns
        return list(dict.fromkeys([*plain, *hashed, *labels]))

    def names_of(self, uri: str) -> list[str]:
        n_rows = _open(self.kind, uri, self._needed[0]).shape[0]
        others = [c for c in columns_of(self.kind, uri) if _open(self.kind, uri, c).shape == (n_rows,)]
        return sorted({*self._needed, *others})

    def rows_of(self, uri: str, start: int, stop: int, columns: Sequence[str]) -> pa.RecordBatch:
        found = {}
        for column in columns:
            array = _open(self.kind, uri, column)
            with _reading(uri, column):
                found[column] = np.asarray(array[start:stop])
            if len(found[column]) != stop - start:
                msg = f"{uri}: {column} ends after {start + len(found[column]):,} rows"
                raise CorpusError(msg, f"{stop:,}")
        return batch_of(found)


def _absolute(root: str) -> str:
    return root.rstrip("/") if "://" in root else str(Path(root).expanduser().absolute())


def columns_of(kind: str, uri: str) -> list[str]:
    """Names of the arrays in a folder or group."""
    if kind == "npy":
        return sorted({path.stem for path in Path(_absolute(uri)).rglob("*.npy")})
    return sorted(_group(_absolute(uri)).array_keys())


def length_of(kind: str, uri: str, column: str) -> int:
    """Rows of an array.

    Raises
    ------
    CorpusError
        If there is none.
    """
    return int(_open(kind, uri, column).shape[0])


def _open(kind: str, uri: str, column: str) -> Any:
    if date_part(column)[1] is not None:
        column = date_part(column)[0]
    array: Any
    if kind == "npy":
        path = Path(uri) / f"{column}.npy"
        with _reading(uri, column):
            # By its time of change: a mapped file that has been written again is another one.
            array = _mapped(path, path.stat().st_ctime_ns, path.stat().st_size)
    else:
        with _reading(uri, column):
            array = _group(uri)[column]
    if not getattr(array, "shape", ()):
        msg = f"{uri}: {column!r} is no array of rows"
        raise CorpusError(msg, "an array of one dimension or more")
    return array


@cache
def _mapped(path: Path, changed: int, size: int) -> np.ndarray:
    found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return found


@cache
def _group(uri: str) -> zarr.Group:
    place = Place(uri)
    if place.local is not None:
        store: Any = LocalStore(place.local, read_only=True)
    else:
        store = ObjectStore(place.objects, read_only=True)
    with _reading(uri, ""):
        return zarr.open_group(store, mode="r")


@contextmanager
def _reading(uri: str, column: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, BaseError) as error:
        what = f"{uri}: column {column!r}" if column else uri
        told = (
            "not there" if isinstance(error, KeyError | FileNotFoundError) or is_missing(error) else first_line(error)
        )
        msg = f"{what}: {told}"
        raise CorpusError(
            msg, "a whole array", "check `root` and the columns in [corpus], or write it again"
        ) from error
