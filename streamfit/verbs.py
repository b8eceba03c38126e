"""The verbs that change what a store holds: accumulate, add, merge, forget; `solve` is in `optimum`. Floor 7.

A `Corpus` is summed into a `Store`; a store grows by `add`, joins others by `merge`, and loses rows by `forget`; and
`solve` makes a `Solution` of it, which with the store's features is a `Model`. None reads a row twice that is counted,
and whatever the order of the verbs, the bits are those of one fit of the rows that are left.

Examples
--------
>>> import numpy as np, tempfile
>>> from streamfit import Corpus, accumulate, add, forget, merge, solve
>>> rng = np.random.default_rng(0)
>>> def month(number, n_rows=500):
...     x = rng.normal(size=(n_rows, 3))
...     y = x @ [1.0, -2.0, 0.5] + 0.1 * rng.normal(size=n_rows)
...     rows = {"x": x, "y": y, "month": np.full(n_rows, number)}
...     return Corpus(rows, ["x"], ["y"], label=f"month-{number}")
>>> january, february = month(1), month(2)
>>> folder = tempfile.TemporaryDirectory()
>>> store = accumulate(january, f"{folder.name}/store", precision="float64")
>>> before = solve(store, alpha=1.0)
>>> store = add(store, february)
>>> store.head().n_rows
1000
>>> solve(store, alpha=1.0).weights.round(1).ravel().tolist()
[1.0, -2.0, 0.5]
>>> store = forget(store, where={"month": 2}, corpus=[january, february])
>>> bool((solve(store, alpha=1.0).weights == before.weights).all())
True
>>> folder.cleanup()
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from distributed import Client

from streamfit import forgetting
from streamfit import store as st
from streamfit.arrays import Precision
from streamfit.corpus import Source
from streamfit.engine import Machine, WorkOptions
from streamfit.engine import accumulate as count
from streamfit.errors import MismatchError
from streamfit.features import Hashed
from streamfit.readers import asked_of, frozen_by, reader_of
from streamfit.repeats import CountRows
from streamfit.rows import Corpus, Several
from streamfit.store import StatisticKind, Store
from streamfit.tables import Block, prepare_table, settings_of


def accumulate(
    corpus: Corpus,
    at: str | Path,
    *,
    features: Sequence[Block | str] = ("linear",),
    precision: Precision = "float32",
    n_folds: int = 5,
    seed: int = 0,
    sample_rows: int = 20_000,
    statistic: StatisticKind | Literal["auto"] = "auto",
    count_rows: CountRows = "auto",
    client: Client | None = None,
    group_rows: int | None = None,
    skip_bad_shards: bool = False,
) -> Store:
    """Sum a corpus into a store: one pass, after a look at a sample.

    Run again after it was stopped, it goes on where it was: what was committed is not read a second time.

    Parameters
    ----------
    corpus : Corpus
    at : str or Path
        Where the store is made or lies: a folder, or ``s3://``, ``gs://``, ``az://``.
    features : sequence of Block or str
        Blocks of features side by side; a name takes its block's defaults.
    precision : {'float32', 'float64', 'tf32', 'bf16'}
        Of products; sums are exact in any.
    n_folds : int
        Folds that alphas can be chosen on later.
    seed, sample_rows : int
        Of the sample that units, centers and widths are taken from.
    statistic : {'auto', 'gram', 'qr', 'sparse'}
    count_rows : {'auto', 'always', 'never'}
        Whether equal rows are multiplied once.
    client : distributed.Client, optional
        Workers; this process without one.
    group_rows : int, optional
        Rows of a task.
    skip_bad_shards : bool
        Record shards that cannot be read, and go on.

    Returns
    -------
    Store

    Raises
    ------
    MismatchError
        If the store there was made with other choices.
    CorpusError
        If there are no rows, or a shard cannot be read.
    PlanError
        If it does not fit into memory; nothing was counted then.

    Examples
    --------
    >>> import pyarrow as pa, tempfile
    >>> from streamfit import Corpus, accumulate, solve
    >>> size, color = [1.0, 2.0, 3.0, None], ["red", "blue", "red", "red"]
    >>> rows = pa.table({"size": size, "color": color, "price": [2.0, 9.0, 6.0, 1.0]})
    >>> corpus = Corpus(rows, ["size", "color"], ["price"], categories=["color"], missing="drop")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = accumulate(corpus, f"{folder}/store", precision="float64")
    ...     solve(store, alpha=1e-9, tolerance=1e-6).weights.round(2).ravel().tolist()
    [2.0, 2.5, -2.5]
    """
    blocks = [Block(each) if isinstance(each, str) else each for each in features]  # type: ignore[arg-type]
    hashed = next((Hashed(b.n, tuple(corpus.features)) for b in blocks if b.kind == "hashed"), None)
    source = corpus.source(hashed)
    if Store.exists(at):
        store = Store(at)
        _refuse_other(store, source, blocks, precision, n_folds, seed, sample_rows)
    else:
        header = prepare_table(
            source,
            blocks,
            precision=precision,
            n_folds=n_folds,
            seed=seed,
            sample_rows=sample_rows,
            skip_bad_shards=skip_bad_shards,
            statistic=statistic,
            count_rows=count_rows,
        )
        store = Store.create(at, header)
    _count(store, frozen_by(source, store.header.reader), client, group_rows, skip_bad_shards)
    return store


def _refuse_other(store: Store, source: Any, blocks: list[Block], *chosen: Any) -> None:
    wanted = {"hashed": None, **reader_of(source), **settings_of(blocks, *chosen)}
    reader = asked_of(store.header.reader)
    there = {**reader, **reader.get("settings", {})}
    differ = [name for name, value in wanted.items() if there.get(name) != value]
    if differ:
        was = ", ".join(f"{name} = {there.get(name)!r}" for name in differ)
        msg = f"{store.place} was made with {was}"
        raise MismatchError(msg, ", ".join(f"{name} = {wanted[name]!r}" for name in differ), "choose another place")


def _count(
    store: Store, source: Source, client: Client | None, group_rows: int | None, skip: bool, replace: bool = False
) -> None:
    options = WorkOptions(skip)
    summary = count(store, source, client=client, options=options, group_rows=group_rows, replace_changed=replace)
    for refusal in summary.refused:
        warnings.warn(f"skipped: {refusal.reason}", SkippedShardWarning, stacklevel=3)
    if summary.repeats:
        (again, first), n = summary.repeats[0], len(summary.repeats)
        more = f", and {n - 1} more" if n > 1 else ""
        msg = f"files that are copies of others count once: {again.key} has the content of {first.key}{more}"
        warnings.warn(msg, RepeatedContentWarning, stacklevel=3)


class RepeatedContentWarning(UserWarning):
    """A file has, to the byte, the content of another one, and was not counted again."""


class SkippedShardWarning(UserWarning):
    """A shard could not be read, and `skip_bad_shards` let the run go on without it."""


def add(
    store: Store,
    corpus: Corpus,
    *,
    replace_changed: bool = False,
    client: Client | None = None,
    group_rows: int | None = None,
    skip_bad_shards: bool = False,
) -> Store:
    """Count more rows into a store, read as its header says: only what it has not counted yet.

    Rows in memory are known by their corpus's label, as files by their path: other rows need another label, so that
    an array that has grown is not counted twice.

    Parameters
    ----------
    store : Store
    corpus : Corpus
        With the columns and policies that the store was made with.
    replace_changed : bool
        Swap files whose content has changed since it was counted, in one commit.
    client, group_rows, skip_bad_shards
        As in `accumulate`.

    Returns
    -------
    Store
        The same.

    Raises
    ------
    MismatchError
        If columns or policies differ.
    ShardChangedError
        If a file has changed, and is not to be replaced.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from streamfit import Corpus, accumulate, add
    >>> day = [Corpus({"x": np.arange(9.0) + d, "y": np.ones(9)}, ["x"], ["y"], label=f"day-{d}") for d in range(2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = accumulate(day[0], f"{folder}/store")
    ...     [add(store, each).head().n_rows for each in (day[0], day[1], day[1])]
    [9, 18, 18]
    """
    _count(store, _alike(store, corpus), client, group_rows, skip_bad_shards, replace_changed)
    return store


def _alike(store: Store, corpus: Corpus) -> Source:
    """A corpus as a store's rows are read, refused where it asks for something else."""
    hashed = store.header.features if isinstance(store.header.features, Hashed) else None
    source = corpus.source(hashed)
    wanted, reader = reader_of(source), asked_of(store.header.reader)
    names = [name for name in wanted if name != "origin"]
    differ = [name for name in names if wanted[name] != reader.get(name)]
    if differ:
        was = ", ".join(f"{name} = {reader.get(name)!r}" for name in differ)
        msg = f"{store.place} was made with {was}"
        raise MismatchError(msg, ", ".join(f"{name} = {wanted[name]!r}" for name in differ), "read rows alike")
    return frozen_by(source, store.header.reader)


def merge(stores: Sequence[Store], at: str | Path) -> Store:
    """Make one store of several that have the same header: what all of them counted.

    Parameters
    ----------
    stores : sequence of Store
    at : str or Path
        Where the new one is made.

    Returns
    -------
    Store

    Raises
    ------
    MismatchError
        If their headers differ, or two of them counted the same content.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from streamfit import Corpus, Store, accumulate, add, merge
    >>> site = [Corpus({"x": np.arange(9.0) * s, "y": np.ones(9)}, ["x"], ["y"]) for s in (1, 2)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     one = accumulate(site[0], f"{folder}/one")
    ...     two = add(Store.create(f"{folder}/two", one.header), site[1])
    ...     merge([one, two], f"{folder}/both").head().n_rows
    18
    """
    return st.merge(stores, at)


def forget(
    store: Store,
    *,
    shards: Sequence[str] = (),
    where: Mapping[str, Any] | None = None,
    why: str = "",
    fast: bool = False,
    corpus: Corpus | Sequence[Corpus] | str | None = None,
    client: Client | None = None,
) -> Store:
    """Take rows out, as if they had never been read: not close to it, but the same bits.

    Parameters
    ----------
    store : Store
    shards : sequence of str
        Keys, files, or beginnings of content ids.
    where : mapping of str to value or values
        Rows leave that have one of some values in a column; of several columns, those that match all.
    why : str
        Kept in the record.
    fast : bool
        Read only the shards that rows leave, and subtract.
    corpus : Corpus, several of them, or str, optional
        All that was counted, where rows were in memory; or where files lie now, if they were moved.
    client : distributed.Client, optional

    Returns
    -------
    Store
        The same, with one commit more.

    Raises
    ------
    ConfigError
        If neither shards nor a condition are given.
    MismatchError
        If nothing matches, or rows that were in memory are not given.

    Examples
    --------
    >>> import pyarrow as pa, tempfile
    >>> import pyarrow.parquet as pq
    >>> from streamfit import Corpus, accumulate, forget
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = pa.table({"user": [1, 2, 3], "x": [1.0, 2.0, 4.0], "y": [1.0, 1.0, 2.0]})
    ...     pq.write_table(rows, f"{folder}/t.parquet")
    ...     store = accumulate(Corpus(f"{folder}/t.parquet", ["x"], ["y"]), f"{folder}/store")
    ...     forget(store, where={"user": [2]}, why="asked for").head().n_rows
    2
    """
    conditions = [
        f"{column}={text}"
        for column, given in (where or {}).items()
        for value in (given if isinstance(given, list | tuple | set | frozenset) else [given])
        for text in _texts(value)
    ]
    given = [corpus] if isinstance(corpus, Corpus) else [] if corpus is None or isinstance(corpus, str) else [*corpus]
    forgetting.forget(
        store,
        Machine("serial"),
        client,
        shards=shards,
        where=conditions,
        why=why,
        fast=fast,
        corpus=corpus if isinstance(corpus, str) else None,
        source=None if not given else Several(tuple(_alike(store, each) for each in given)),
    )
    return store


def _texts(value: Any) -> set[str]:
    """A value as rows are compared with it: 2.0 as 2, and a time in every unit that a column of times may have."""
    if isinstance(value, str):
        return {value}
    kinds = [pa.string()]
    if isinstance(value, datetime):
        kinds += [pa.timestamp(unit, None if value.tzinfo is None else "UTC") for unit in ("s", "ms", "us", "ns")]
    found = set()
    for kind in kinds:
        with suppress(pa.ArrowException, TypeError, ValueError):
            found.add(str(pa.scalar(value).cast(kind).cast(pa.string()).as_py()))
    return found or {str(value)}
