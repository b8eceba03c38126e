"""Taking shards, or rows by the value of a column, out of a store: what is meant, and where it lies now. Floor 7.

What `streamfit forget` does; the removal itself is the engine's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from distributed import Client

from streamfit.corpus import Source
from streamfit.corpus.labels import told
from streamfit.engine import Machine, Rewritten, WorkOptions, bands_of, find_rows, placed, rewrite
from streamfit.errors import ConfigError, MismatchError
from streamfit.plan import Shard
from streamfit.store import Store
from streamfit.stores import locate, reader_of


def forget(
    store: Store,
    machine: Machine,
    client: Client | None,
    *,
    shards: Sequence[str] = (),
    where: Sequence[str] = (),
    why: str = "",
    fast: bool = False,
    corpus: str | None = None,
    group_rows: int | None = None,
    source: Source | None = None,
) -> Rewritten:
    """Take shards, or rows by the value of a column, out of a store, in one commit.

    Parameters
    ----------
    store : Store
    machine, client
        Where to work.
    shards : sequence of str
        Keys, files (all their shards), or beginnings of content ids of eight digits or more.
    where : sequence of str
        `column=value`, or `column=@file` with a value a line; for text files the column is `doc_id`, the path. Rows
        that have one of the values of every column that is named leave.
    why : str
        The reason, for the record.
    fast : bool
        Read only the shards that rows leave, and subtract; see `rewrite`.
    corpus : str, optional
        Where the corpus lies now, if it was moved.
    group_rows : int, optional
    source : Source, optional
        Reads the rows, where the store's header alone does not tell how.

    Raises
    ------
    ConfigError
        If neither is given, or a condition has another form.
    MismatchError
        If a shard is not counted, or nothing matches.
    """
    if not shards and not where:
        msg = "neither --shard nor --where"
        raise ConfigError(msg, "what to forget", "for instance --where doc_id=17")
    bands = bands_of(store, machine.worker_memory, machine.threads)
    options = WorkOptions(n_threads=machine.threads, backend=machine.backend, n_bands=bands)
    given, source = source, source or reader_of(store, corpus)
    if given is not None:
        there = {shard.bytes_id: shard for shard in given.shards()}
    else:
        there = locate(store, corpus) if corpus else {}
    counted = store.counted()
    present = [placed(shard, there) for shard in counted.values()]
    leaving: dict[str, tuple[int, ...] | None] = {}
    for name in shards:
        leaving |= dict.fromkeys(_named(name, present))
    matching: dict[str, tuple[int, ...]] | None = None
    for column, values in _conditions(where).items():
        found = find_rows(store, source, column, values, where=there, client=client, options=options)
        matching = found if matching is None else _in_both(matching, found)
    leaving = {**(matching or {}), **leaving}
    if where and not matching:
        told = [f"{column}={' or '.join(sorted(values)[:9])}" for column, values in _conditions(where).items()]
        msg = f"no counted row with {' and '.join(told)}"
        raise MismatchError(msg, "at least one", "values are compared as text; nothing was changed")
    for content, gone in leaving.items():
        if gone is not None and _is_all(store, counted[content], gone):
            leaving[content] = None
    return rewrite(
        store,
        source,
        leaving,
        why=why,
        fast=fast,
        where=there,
        client=client,
        options=options,
        group_rows=group_rows,
    )


def _in_both(one: dict[str, tuple[int, ...]], other: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Positions that are in both, by content id."""
    both = {content: tuple(sorted({*one[content]} & {*other[content]})) for content in one.keys() & other.keys()}
    return {content: positions for content, positions in both.items() if positions}


def _is_all(store: Store, shard: Shard, positions: tuple[int, ...]) -> bool:
    if store.header.reader.get("kind") != "tokens":
        return len(positions) == shard.planned_rows
    return bool(store.header.reader.get("settings", {}).get("files", "text") == "text")  # a file is one document


def _named(name: str, counted: Sequence[Shard]) -> list[str]:
    hexadecimal = len(name) >= 8 and set(name) <= set("0123456789abcdef")
    found = [s for s in counted if hexadecimal and s.content_id.startswith(name)]
    found = found or [s for s in counted if s.key == name]
    found = found or [s for s in counted if name in _wider_names(s)]
    if not found and "://" not in name:  # a path from here, as `add` takes it
        here = Path(name).expanduser().absolute()
        found = [s for s in counted if s.uri in {str(here), str(here.resolve())}]
    files = sorted({s.uri for s in found})
    if not found:
        msg = f"no counted shard {name!r}"
        raise MismatchError(msg, "a key, a file or the beginning of a content id", "`streamfit status --shards`")
    if len(files) > 1:
        msg = f"{name!r} is the name of shards of {len(files)} files: {', '.join(files[:3])}"
        raise MismatchError(msg, "one of them", "give the full path, or content ids")
    return [s.content_id for s in found]


def _wider_names(shard: Shard) -> set[str]:
    """Names of what a shard is a part of: of the part of a file that it selects rows of, and of the file."""
    part = shard.key.removesuffix(told(shard.select))
    return {part, re.sub(r"#\d+(-\d+)?$", "", part), shard.uri} - {""}  # no path: it came without names


def _conditions(where: Sequence[str]) -> dict[str, set[str]]:
    wanted: dict[str, set[str]] = {}
    for condition in where:
        column, sign, value = condition.partition("=")
        if not sign or not column or not value:
            msg = f"--where {condition!r}"
            raise ConfigError(msg, "column=value, or column=@file with a value a line")
        values = {value}
        if value.startswith("@"):
            try:
                values = set(Path(value[1:]).read_text(encoding="utf-8").split("\n")) - {""}
            except (OSError, UnicodeDecodeError) as error:
                msg = f"{value[1:]}: {error.strerror if isinstance(error, OSError) else 'not utf-8'}"
                raise ConfigError(msg, "a readable file with a value a line") from error
        wanted.setdefault(column, set()).update(values)
    return wanted
