"""Making a place a store, and telling whether it is one: the header and the first record. Floor 4."""

from __future__ import annotations

import uuid

from streamfit.errors import StoreError
from streamfit.store.arrays_io import read_group, write_group
from streamfit.store.header import Header
from streamfit.store.log import Log, Record, record_key
from streamfit.store.place import Place

_MADE_FIRST = {"header", "_log", "zarr.json"}


def is_store(place: Place) -> bool:
    """Whether a place holds a store that was made whole: its log has a first record."""
    return (place.local is None or place.local.is_dir()) and place.exists(record_key(0))


def what_is_there(place: Place) -> str:
    """What a place without a log holds, in words."""
    if place.local is None:
        return "nothing there"
    if not place.local.is_dir():
        return "no folder"
    return "its log is empty" if (place.local / "_log").is_dir() else "a folder without a log"


def found(place: Place, log: Log, header: Header, max_live: int, keep: int) -> None:
    """Make a place a store, unless it is one.

    Raises
    ------
    StoreError
        If the place holds something else, or cannot be written.
    """
    _refuse_foreign(place)
    place.make()
    if log.head() is None:
        folder = _write_header(place, header)

        def first(newest: Record | None) -> Record | None:
            if newest is not None:
                return None
            return Record(0, header.content_hash, folder, max_live=max_live, keep=keep)

        log.append(first)


def read_header(place: Place, first: Record) -> Header:
    """The header that a log's first record names, checked against the hash in it.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    spec, arrays = read_group(place.objects, first.header_at)
    fault: Exception | None = None
    try:
        header = Header.from_spec(spec, arrays)
        if header.content_hash == first.header:
            return header
    except StoreError:
        raise
    except Exception as error:  # an altered description fails in as many ways as it has fields
        fault = error
    msg = f"the header of {place} was altered"
    raise StoreError(msg, f"content {first.header[:12]}", "restore it from a backup") from fault


def _refuse_foreign(place: Place) -> None:
    path = place.local
    if path is None:
        return
    if path.exists() and not path.is_dir():
        msg = f"{path} is a file"
        raise StoreError(msg, "a folder, or nothing there yet", "choose another path")
    if path.is_dir() and not (path / "_log").is_dir():
        names = sorted(p.name for p in path.iterdir())
        if not set(names) <= _MADE_FIRST:
            msg = f"{path} is not a store, but holds {', '.join(names[:3])}"
            raise StoreError(msg, "a store or an empty folder", "choose another path")


def _write_header(place: Place, header: Header) -> str:
    spec, arrays = header.to_spec()
    # A fresh name: what a crash left half-written is never taken for whole, for no record names it.
    folder = f"header/{uuid.uuid4().hex}"
    write_group(place.objects, folder, spec, arrays)
    place.settle(folder)
    return folder
