"""Arrays to and from Zarr v3 groups: codecs, checksums, chunk presence. Floor 4."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import obstore
import zarr
from obstore.store import ObjectStore
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import MemoryStore, WrapperStore
from zarr.storage import ObjectStore as ZarrObjects

from streamfit.errors import StoreError
from streamfit.store.place import first_line

_TILE_BYTES = 2**25


def write_group(objects: ObjectStore, path: str, attributes: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a Zarr group with its attributes and arrays; the attribute `arrays` lists the latter by name.

    Chunks are single tiles along the first axis of arrays of three axes, and up to 32 MB of rows or numbers
    otherwise. Every chunk carries a crc32c, since without one a flipped bit reads back silently, and chunks of
    zeros are written, since a missing chunk must mean damage.

    Raises
    ------
    StoreError
        If the store cannot be written.
    """
    named = {**attributes, "arrays": sorted(arrays)}
    # All at once: an array made by itself would write every group above it anew, an object each.
    nodes: dict[str, Any] = {path: zarr.create_group(MemoryStore(), attributes=named).metadata}
    nodes |= {f"{path}/{name}": _described(array) for name, array in arrays.items()}
    target = _Writes(ZarrObjects(objects))
    try:
        for where, node in zarr.create_hierarchy(store=target, nodes=nodes):
            if isinstance(node, zarr.Array):
                node.with_config({"write_empty_chunks": True})[...] = arrays[where.removeprefix(f"{path}/")]
    except (OSError, obstore.exceptions.BaseError) as error:  # it looks for arrays above first
        target.failure = target.failure or error
    if target.failure is not None:
        msg = f"cannot write {path}: {first_line(target.failure)}"
        raise StoreError(msg, "a writable store", "check disk space and permissions") from target.failure


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


def _described(array: np.ndarray) -> Any:
    """What a `zarr.json` says of an array."""
    return zarr.create_array(
        MemoryStore(),
        shape=array.shape,
        chunks=_chunks(array),
        dtype=array.dtype,
        compressors=[BloscCodec(cname="lz4", shuffle="shuffle", typesize=array.dtype.itemsize), Crc32cCodec()],
    ).metadata


def _chunks(array: np.ndarray) -> tuple[int, ...]:
    if array.ndim == 3:
        return (1, *array.shape[1:])
    if array.ndim == 2:
        rows = max(1, _TILE_BYTES // max(1, array.shape[1] * array.itemsize))
        return (min(rows, max(1, array.shape[0])), max(1, array.shape[1]))
    return tuple(max(1, min(n, _TILE_BYTES // array.itemsize)) for n in array.shape)


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
        return attributes, {name: np.asarray(node[...]) for name, node in nodes.items()}


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
        group = zarr.open_group(ZarrObjects(objects), path=path, mode="r")
        present = {m["path"] for batch in obstore.list(objects, f"{path}/") for m in batch}
        attributes = dict(group.attrs)
        arrays = {}
        names: Any = attributes.pop("arrays")
        for name in filter(keep, names):
            node: Any = group[name]
            _check_chunks(f"{path}/{name}", node, present)
            arrays[name] = node
    return attributes, arrays


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
