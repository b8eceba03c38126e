"""Whole segments that leave a store and come into another: as one file, or from store to store. Floor 4."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.plan import Shard
from streamfit.store.ledger import Departure
from streamfit.store.log import Record, Refusal, Removal
from streamfit.store.place import first_line
from streamfit.store.store import Store
from streamfit.store.upkeep import by_kind, make_room, sum_segments


def absorb(target: Store, source: Store, action: str, *, anonymous: bool = False) -> Record:
    """Take all that another store counted, and all that it was made to forget, in one commit.

    Parameters
    ----------
    target, source : Store
    action : str
    anonymous : bool
        Leave out names of shards, and reasons why some were refused or forgotten.

    Raises
    ------
    MismatchError
        If the headers differ, or some content is in both, or was forgotten in one and is counted in the other;
        nothing is changed then.
    """
    target.refuse_other(source.header, str(source.place))
    refuse_overlap(target, source)
    return _absorb(target, [source], action, anonymous)


def _absorb(target: Store, sources: Sequence[Store], action: str, anonymous: bool = False) -> Record:
    rename: Callable[[Shard], Shard] = _nameless if anonymous else lambda shard: shard
    holders = {segment: source for source in sources for segment in source.head().segments}
    kinds = by_kind(holders)
    make_room(target, len(kinds))
    merged = [sum_segments([(holders[segment], segment) for segment in group], target, rename) for group in kinds]
    removals: list[Removal] = []
    refused: list[Refusal] = []
    for source in sources:
        for removal in source.head().removed:
            name, digest = target.write_removal([_renamed(d, rename) for d in source.departures(removal)])
            why = "" if anonymous else removal.why
            who = "" if anonymous else removal.who
            removals.append(replace(removal, id=name, digest=digest, why=why, who=who))
        refused += source.head().refused
    if anonymous:
        refused = [replace(refusal, key=refusal.content_id[:16], reason="") for refusal in refused]
    return target.commit(merged, refused, action, removals=removals)


def refuse_overlap(target: Store, source: Store) -> None:
    """Check that no content is in both of two stores, nor counted in one and forgotten in the other.

    Raises
    ------
    MismatchError
        Naming the shards. Also if both divided the same bytes by different label columns.
    """
    mine, theirs = target.counted(), source.counted()
    shared = [(theirs[content], mine[content]) for content in theirs if content in mine]
    if shared:
        named = "; ".join(f"{a.key} is {b.key}" if a.key != b.key else a.key for a, b in shared[:5])
        more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
        msg = f"{len(shared)} shards that {source.place} and {target.place} both counted: {named}{more}"
        raise MismatchError(msg, "each content in one of them", "forget them in one store first")
    cuts = {shard.bytes_id: shard for shard in mine.values()}
    for shard in theirs.values():
        other = cuts.get(shard.bytes_id)
        if other is not None and [name for name, _ in other.select] != [name for name, _ in shard.select]:
            msg = f"{shard.key} of {source.place} and {other.key} of {target.place}: the same bytes, divided otherwise"
            raise MismatchError(msg, "each row in one of them", "count both with the same label columns")
    for counted, where in ((theirs, target), (mine, source)):
        gone, rows = where.forgotten_among(counted.values()), where.withdrawn()
        for content, shard in counted.items():
            back = rows.get(shard.bytes_id, set()) - set(shard.without)
            if content in gone or back:
                part = f"{len(back)} rows of " if back else ""
                msg = f"{part}{shard.key}, which {where.place} was made to forget"
                raise MismatchError(msg, "stores that agree on what is forgotten", "forget it in the other store too")


def export_segments(store: Store, path: Path, *, empty: bool = False, anonymous: bool = False) -> int:
    """Write all that a store counted into one zip file, which is itself a store of one segment for each kind.

    Parameters
    ----------
    store : Store
    path : Path
        A new `.zip`. Its members are the objects of a store, not compressed again, so Zarr reads it in place.
    empty : bool
        The header alone: what another site needs to count alike.
    anonymous : bool
        Leave out paths and keys of shards, reasons, and who exports; content ids stay, for they tell what is in both,
        and labels.

    Returns
    -------
    int
        Rows in the file.

    Raises
    ------
    ConfigError
        If the name does not end in `.zip`, or is taken.
    StoreError
        If it cannot be written.
    """
    if path.suffix != ".zip" or path.exists():
        msg = f"{path}" + (" is there already" if path.exists() else "")
        raise ConfigError(msg, "a new .zip", "choose another name")
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".streamfit-") as folder:
            copy = Store.create(Path(folder) / "store", store.header, who="" if anonymous else None)
            if not empty:
                absorb(copy, store, f"export of {store.head().commit}", anonymous=anonymous)
            partial = Path(folder) / "file.zip"
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
                for item in sorted((Path(folder) / "store").rglob("*")):
                    if item.is_file():
                        file.write(item, item.relative_to(Path(folder) / "store").as_posix())
            partial.rename(path)
            return copy.head().n_rows
    except OSError as error:
        msg = f"cannot write {path}: {first_line(error)}"
        raise StoreError(msg, "a writable folder", "check disk space and permissions") from error


def _nameless(shard: Shard) -> Shard:
    return replace(shard, key=shard.content_id[:16], uri="")


def import_segments(path: Path, where: str | Path) -> tuple[Store, Record]:
    """Add the segments of a file that `export_segments` wrote; makes the store if there is none.

    Raises
    ------
    ConfigError
        If the file is not such a file.
    MismatchError
        If the store there has another header, or some content already.
    """
    with tempfile.TemporaryDirectory(prefix="streamfit-") as folder:
        try:
            with zipfile.ZipFile(path) as file:
                file.extractall(folder)
            source = Store(folder)
            header = source.header
        except Exception as error:  # a damaged file fails in as many ways as it has layers
            fault = "no store in it" if isinstance(error, StoreError) else first_line(error)
            msg = f"{path}: {fault}"
            raise ConfigError(msg, "a file that `streamfit export STORE FILE.zip` wrote") from error
        target = Store.create(where, header)
        if source.head().segments or source.head().removed:
            return target, absorb(target, source, f"import {path.name}")
        return target, target.head()


def merge(stores: Sequence[Store], where: str | Path) -> Store:
    """Make a new store of all that several stores counted.

    Raises
    ------
    MismatchError
        If their headers differ, or some content is in two of them; no store is made then.
    ConfigError
        If there is a store at `where` already, other than an empty one that a merge may have left unfinished.
    """
    if Store.exists(where) and Store(where).head().sequence:
        msg = f"a store at {where}"
        raise ConfigError(msg, "nothing there yet", "choose another place, or `streamfit import` into it")
    first = stores[0]
    for other in stores:
        first.refuse_other(other.header, str(other.place))
    for i, a in enumerate(stores):
        for b in stores[i + 1 :]:
            refuse_overlap(a, b)
    policy = first.head()
    target = Store.create(where, first.header, max_live=policy.max_live, keep=policy.keep)
    _absorb(target, stores, f"merge {', '.join(str(other.place) for other in stores)}")
    return target


def _renamed(departure: Departure, rename: Callable[[Shard], Shard]) -> Departure:
    """A departure under the name that its shard would have."""
    shard = Shard(departure.key, "", 0, 0, 0, departure.n_rows, departure.content_id, "")
    return replace(departure, key=rename(shard).key)
