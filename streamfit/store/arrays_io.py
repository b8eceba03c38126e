"""Arrays to and from Zarr v3 groups: codecs, checksums, chunk presence. Floor 4."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import obstore
import zarr
from obstore.store import ObjectStore
from zarr.api import asynchronous
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.sync import sync
from zarr.storage import MemoryStore, WrapperStore
from zarr.storage import ObjectStore as ZarrObjects

from streamfit.errors import StoreError
from streamfit.store.place import first_line

_TILE_BYTES = 2**25
COUNT_ROWS = 2**18
"""Rows of tables of counts in a chunk: many are merged at a time, with one of each in memory."""
_SMALL_BYTES = 2**20
"""Arrays up to here, most of a segment's, are read and written at the same time; large ones in turn, for memory."""


@dataclass(frozen=True)
class Tiles:
    """An array that is too large for memory: made a piece along the first axis at a time, as it is written.

    Parameters
    ----------
    shape : tuple of int
    step : tuple of int
        Shape of a piece, that at the end may be shorter; each is a whole number of chunks.
    make : callable
        Gives piece i.
    """

    shape: tuple[int, ...]
    step: tuple[int, ...]
    make: Callable[[int], np.ndarray]
    dtype: np.dtype = np.dtype(np.float64)  # noqa: RUF009 - a constant

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Each piece and its place along the first axis."""
        for i, lo in enumerate(range(0, self.shape[0], self.step[0])):
            yield slice(lo, min(lo + self.step[0], self.shape[0])), self.make(i)


def write_group(
    objects: ObjectStore, path: str, attributes: dict[str, Any], arrays: Mapping[str, np.ndarray | Tiles]
) -> None:
    """Write a Zarr group with its attributes and arrays; the attribute `arrays` lists the latter by name.

    Chunks are single tiles along the first axis of arrays of three axes, `COUNT_ROWS` rows of tables of counts, and up
    to 32 MB of rows or numbers otherwise. Every chunk carries a crc32c, since without one a flipped bit reads back
    silently, and chunks of zeros are written, since a missing chunk must mean damage.

    Raises
    ------
    StoreError
        If the store cannot be written.
    """
    named = {**attributes, "arrays": sorted(arrays)}
    # All at once: an array made by itself would write every group above it anew, an object each.
    nodes: dict[str, Any] = {path: zarr.create_group(MemoryStore(), attributes=named).metadata}
    nodes |= {
        f"{path}/{name}": _described(array.shape, array.dtype, counts=name.startswith("tally_"))
        for name, array in arrays.items()
    }
    target = _Writes(ZarrObjects(objects))
    try:
        made = zarr.create_hierarchy(store=target, nodes=nodes)
        empty = {where: node for where, node in made if isinstance(node, zarr.Array)}
        sync(_fill({where.removeprefix(f"{path}/"): node for where, node in empty.items()}, arrays))
        for name, array in arrays.items():
            if isinstance(array, Tiles):
                node = empty[f"{path}/{name}"].with_config({"write_empty_chunks": True})
                for rows, piece in array.pieces():
                    node[rows] = piece
    except (OSError, obstore.exceptions.BaseError) as error:  # it looks for arrays above first
        target.failure = target.failure or error
    if target.failure is not None:
        msg = f"cannot write {path}: {first_line(target.failure)}"
        raise StoreError(msg, "a writable store", "check disk space and permissions") from target.failure


async def _fill(nodes: Mapping[str, zarr.Array[Any]], arrays: Mapping[str, np.ndarray | Tiles]) -> None:
    async def write(name: str) -> None:
        node, array = nodes[name].with_config({"write_empty_chunks": True}), arrays[name]
        if isinstance(array, Tiles):
            return  # reading its pieces takes the loop that this runs in
        await node.async_array.setitem(..., array)

    await _each(write, {name: array.nbytes for name, array in arrays.items()})


async def _read(nodes: Mapping[str, zarr.Array[Any]]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}

    async def read(name: str) -> None:
        found[name] = np.asarray(await nodes[name].async_array.getitem(...))

    await _each(read, {name: node.nbytes for name, node in nodes.items()})
    return {name: found[name] for name in nodes}


async def _each(act: Callable[[str], Awaitable[None]], n_bytes: Mapping[str, int]) -> None:
    """Act on small arrays at the same time, then on each large one, whose chunks Zarr takes several at a time."""
    small = [name for name, size in n_bytes.items() if size <= _SMALL_BYTES]
    await asyncio.gather(*map(act, small))
    for name in n_bytes:
        if name not in small:
            await act(name)


class _Writes(WrapperStore[ZarrObjects[Any]]):
    """Keeps the first failure and writes nothing after it.

    Zarr writes many objects at once; a task that fails beside the first would be nobody's, and asyncio would print its
    traceback at exit.
    """

    failure: Exception | None = None

    async def set(self, key: str, value: Any) -> None:
        await self._guarded(super().set, key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        await self._guarded(super().set_if_not_exists, key, value)

    async def _guarded(self, write: Callable[[str, Any], Awaitable[None]], key: str, value: Any) -> None:
        if self.failure is None:
            try:
                await write(key, value)
            except (OSError, obstore.exceptions.BaseError) as error:
                self.failure = self.failure or error


@lru_cache(maxsize=256)
def _described(shape: tuple[int, ...], dtype: np.dtype, counts: bool) -> Any:
    """What a `zarr.json` says of an array; the same for each segment of a store, but for counts."""
    return zarr.create_array(
        MemoryStore(),
        shape=shape,
        chunks=_chunks(shape, dtype.itemsize, counts),
        dtype=dtype,
        compressors=[BloscCodec(cname="lz4", shuffle="shuffle", typesize=dtype.itemsize), Crc32cCodec()],
    ).metadata


def _chunks(shape: tuple[int, ...], n_bytes: int, counts: bool) -> tuple[int, ...]:
    if counts:
        return (max(1, min(COUNT_ROWS, shape[0])), *(max(1, n) for n in shape[1:]))
    if len(shape) == 3:
        return (1, *shape[1:])
    if len(shape) == 2:
        rows = max(1, _TILE_BYTES // max(1, shape[1] * n_bytes))
        return (min(rows, max(1, shape[0])), max(1, shape[1]))
    return tuple(max(1, min(n, _TILE_BYTES // n_bytes)) for n in shape)


def read_group(
    objects: ObjectStore, path: str, keep: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a group's attributes and those of its arrays that `keep` accepts by name.

    Raises
    ------
    StoreError
        If anything is missing or a checksum fails.
    """
    attributes, nodes = open_group(objects, path, keep)
    with reading(path):
        return attributes, sync(_read(nodes))


def open_group(
    objects: ObjectStore, path: str, keep: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Any], dict[str, zarr.Array[Any]]]:
    """As `read_group`, with arrays that are not read yet; every chunk of theirs is there.

    Raises
    ------
    StoreError
        If anything is missing.
    """
    with reading(path):
        attributes, arrays = sync(_open(ZarrObjects(objects), path, keep))
        present = {m["path"] for batch in obstore.list(objects, f"{path}/") for m in batch}
        for name, node in arrays.items():
            _check_chunks(f"{path}/{name}", node, present)
    return attributes, arrays


async def _open(
    objects: ZarrObjects[Any], path: str, keep: Callable[[str], bool]
) -> tuple[dict[str, Any], dict[str, zarr.Array[Any]]]:
    group = await asynchronous.open_group(objects, path=path, mode="r", zarr_format=3)
    attributes = dict(group.attrs)
    kept: Any = [*filter(keep, attributes.pop("arrays"))]
    nodes: list[Any] = await asyncio.gather(*map(group.getitem, kept))
    return attributes, {name: zarr.Array(node) for name, node in zip(kept, nodes, strict=True)}


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Make one kind of error of all that reading arrays of a group may raise.

    Raises
    ------
    StoreError
        If anything is missing or a checksum fails.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # codecs raise whatever their C library made of the damage
        msg = f"cannot read {path}: {first_line(error)}"
        raise StoreError(msg, "what was written there", "run `streamfit verify`; restore it from a backup") from error


def check_again(objects: ObjectStore, path: str, array: zarr.Array[Any]) -> None:
    """Check an array that was opened before: what was deleted since reads as zeros.

    Raises
    ------
    StoreError
        If a chunk is missing.
    """
    with reading(path):
        _check_chunks(path, array, {m["path"] for batch in obstore.list(objects, f"{path}/") for m in batch})


def _check_chunks(path: str, array: zarr.Array[Any], present: set[str]) -> None:
    # A missing chunk would read as zeros.
    counts = [-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True)]
    for index in product(*map(range, counts)):
        chunk = "/".join([path, "c", *map(str, index)])
        if chunk not in present:
            msg = f"chunk {chunk} is missing"
            raise StoreError(msg, "every chunk of a committed segment", "restore it from a backup")
