"""A sample of hashed rows from all parts of a corpus: how full their Gram matrix will be shows in nothing less.

Floor 6: imports corpus, plan, errors. The first rows of a sorted file, or a few shards of one, hold few of the names
that come later, so that the pairs among them are far from those of all rows.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse

from streamfit.corpus import ParquetTable, Rows
from streamfit.corpus.table import Table
from streamfit.errors import ShardError
from streamfit.plan import Shard
from streamfit.readers import no_rows

_SHARDS = 128
"""Shards that a sample is drawn from, where there are more. All their rows are decoded, only those drawn are hashed."""


def spread_sample(
    source: ParquetTable | Table, n_rows: int, seed: int, *, skip: bool = False
) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray | None]:
    """About `n_rows` rows, of shards evenly spaced over the corpus and at random within what is read of each.

    Where rows are of all shards they are in random order, so that half of them are a sample like the whole. Where they
    are not, rows of a shard stay together, and shards are in random order: half of them then are of other shards than
    the rest, so that growth between the two counts what is new in a shard.

    Parameters
    ----------
    source : ParquetTable or Table
        One that hashes.
    n_rows : int
    seed : int
    skip : bool
        Whether a shard that cannot be read is left out.

    Returns
    -------
    x : csr_array of shape (n_sampled, n_features)
    y : array of shape (n_sampled, n_targets), or integer (n_sampled,)
    weights : array of shape (n_sampled,), or None

    Raises
    ------
    ShardError
        If a shard cannot be read and is not skipped.
    CorpusError
        If there are no rows.
    """
    shards, rng = source.shards(), np.random.default_rng(seed)
    every = len(shards) <= _SHARDS
    places = np.arange(len(shards)) if every else np.linspace(0, len(shards) - 1, _SHARDS).round().astype(np.int64)
    chosen = [shards[i] for i in rng.permutation(places)]
    share = min(1.0, n_rows / max(1, sum(shard.planned_rows for shard in chosen)))
    n_in_group = cache(_rows_in_group)  # of the file itself, of which a shard may select a part
    parts: list[Rows] = []
    for shard in chosen:
        try:
            if isinstance(source, Table):
                parts += (_some(rows, share, rng) for rows in source.read(shard))
            else:
                parts += source.read(_thinned(shard, n_in_group(shard.uri, shard.start), share, rng))
        except ShardError:
            if not skip:
                raise
    if not sum(len(part.y) for part in parts):
        raise no_rows(source)
    x = scipy.sparse.csr_array(scipy.sparse.vstack([part.x for part in parts], format="csr"))
    y = np.concatenate([part.y for part in parts])
    given = [part.weights for part in parts if part.weights is not None]
    weights = np.concatenate(given) if given else None
    if not every:
        return x, y, weights
    order = rng.permutation(len(y))
    return x[order], y[order], None if weights is None else weights[order]


def _rows_in_group(uri: str, group: int) -> int:
    try:
        return int(pq.read_metadata(uri).row_group(group).num_rows) if group >= 0 else 0
    except (pa.ArrowException, OSError):
        return 0  # reading it says why


def _thinned(shard: Shard, n_rows: int, share: float, rng: np.random.Generator) -> Shard:
    """A shard without all but a share of its row group's rows, at random; at least one stays."""
    left_out = n_rows - int(np.ceil(share * n_rows))
    return replace(shard, without=tuple(np.sort(rng.choice(n_rows, left_out, replace=False)).tolist()))


def _some(rows: Rows, share: float, rng: np.random.Generator) -> Rows:
    """A share of a block's rows, at random; at least one stays."""
    chosen = np.sort(rng.choice(len(rows.y), int(np.ceil(share * len(rows.y))), replace=False))
    return Rows(rows.x[chosen], rows.y[chosen], None if rows.weights is None else rows.weights[chosen])
