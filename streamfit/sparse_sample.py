"""A sample of hashed rows from all parts of a corpus: how full their Gram matrix will be shows in nothing less.

Floor 6: imports corpus, frame, errors. The first rows of a sorted file, or a few shards of one, hold few of the names
that come later, so that the pairs among them are far from those of all rows.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from streamfit.corpus import ParquetTable, Rows
from streamfit.errors import CorpusError, ShardError
from streamfit.frame import BLOCK_ROWS

_SHARDS = 128
"""Shards that a sample is drawn from, where there are more."""
_READ_ROWS = 2**19
"""Rows that are read for it, about: all of a small corpus, one block of each shard of a large one."""


def spread_sample(
    source: ParquetTable, n_rows: int, seed: int, *, skip: bool = False
) -> tuple[scipy.sparse.csr_array, np.ndarray, np.ndarray | None]:
    """About `n_rows` rows, of shards evenly spaced over the corpus and at random within what is read of each.

    Where rows are of all shards they are in random order, so that half of them are a sample like the whole. Where they
    are not, rows of a shard stay together, and shards are in random order: half of them then are of other shards than
    the rest, so that growth between the two counts what is new in a shard.

    Parameters
    ----------
    source : ParquetTable
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
    there = max(1, sum(shard.planned_rows for shard in chosen))
    parts: list[Rows] = []
    for shard in chosen:
        limit = max(BLOCK_ROWS, -(-shard.planned_rows * _READ_ROWS // there))
        share = min(1.0, shard.planned_rows / min(limit, max(1, shard.planned_rows)) * n_rows / there)
        n_read = 0
        try:
            for rows in source.read(shard):
                n = len(rows.y)
                kept = np.sort(rng.choice(n, int(np.ceil(n * share)), replace=False))
                parts.append(Rows(rows.x[kept], rows.y[kept], None if rows.weights is None else rows.weights[kept]))
                n_read += n
                if n_read >= limit:
                    break
        except ShardError:
            if not skip:
                raise
    if not parts:
        msg = "a corpus without any readable rows"
        raise CorpusError(msg, "at least one row", "check the paths and columns of [corpus]")
    x = scipy.sparse.csr_array(scipy.sparse.vstack([part.x for part in parts], format="csr"))
    y = np.concatenate([part.y for part in parts])
    given = [part.weights for part in parts if part.weights is not None]
    weights = np.concatenate(given) if given else None
    if not every:
        return x, y, weights
    order = rng.permutation(len(y))
    return x[order], y[order], None if weights is None else weights[order]
