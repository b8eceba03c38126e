"""Which documents are near-duplicates: those that share most of their runs of words.

Floor 6: imports counts, errors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components

from streamfit.counts import Int64
from streamfit.errors import ConfigError

_WORD = re.compile(r"\w+|[^\w\s]")


def near_duplicates(texts: Sequence[str], run: int = 8, share: float = 0.5) -> scipy.sparse.csr_array:
    """Compare all documents with one another by the runs of words that they share.

    Two documents are near-duplicates if more than `share` of the distinct runs of `run` words (punctuation marks are
    words) of the shorter one also stand in the other; a copy that was lengthened is one, too. This is the containment
    of Broder (On the resemblance and containment of documents, 1997), of all runs and not of a sketch of them; runs are
    compared by 64-bit hashes.

    Parameters
    ----------
    texts : sequence of str
    run : int
        A document of fewer words has no runs, and so no near-duplicates.
    share : float
        In [0, 1).

    Returns
    -------
    sparse bool array of shape (n, n)
        Symmetric, with nothing on the diagonal.

    Raises
    ------
    ConfigError
        If `run` is below 1 or `share` out of range.

    Examples
    --------
    >>> found = near_duplicates(["a b c d", "a b c e", "x y z", "y z x"], run=2)
    >>> found.toarray().astype(int).tolist()
    [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    """
    if run < 1 or not 0 <= share < 1:
        msg = f"near-duplicates by runs of {run} words and a share of {share}"
        raise ConfigError(msg, "runs of 1 or more words, and a share of at least 0 and below 1")
    ids: dict[str, int] = {}
    runs = [_runs(np.array([ids.setdefault(w, len(ids)) for w in _WORD.findall(t)], np.uint64), run) for t in texts]
    sizes = np.array([len(r) for r in runs], np.int64)
    _, columns = np.unique(np.concatenate([*runs, np.empty(0, np.uint64)]), return_inverse=True)
    n_columns = int(columns.max()) + 1 if columns.size else 1
    starts = np.append(0, np.cumsum(sizes))
    has = scipy.sparse.csr_array((np.ones(columns.size, np.int32), columns.ravel(), starts), (len(texts), n_columns))
    common = (has @ has.T).tocoo()
    shorter = np.minimum(sizes[common.row], sizes[common.col])
    alike = (common.data > share * shorter) & (common.row != common.col)
    places = common.row[alike], common.col[alike]
    return scipy.sparse.csr_array((np.ones(int(alike.sum()), np.bool_), places), (len(texts), len(texts)))


def sample_with_duplicates(sizes: Sequence[int], alike: scipy.sparse.csr_array, limit: int, seed: int = 0) -> Int64:
    """Draw documents until they are large enough together, each with its near-duplicates and theirs.

    A sample of single documents would leave most of them without the near-duplicates that they have in the corpus.

    Parameters
    ----------
    sizes : sequence of int
        Of each document.
    alike : sparse bool array of shape (n, n)
        As `near_duplicates` finds them.
    limit : int
        Of the sum of sizes, which may go above it by one group of documents.
    seed : int

    Returns
    -------
    int64 array
        Documents, in order.
    """
    n_groups, group = connected_components(alike, directed=False)
    total = np.bincount(group, sizes, n_groups)
    order = np.random.default_rng(seed).permutation(n_groups)
    before = np.cumsum(total[order]) - total[order]
    return np.flatnonzero(np.isin(group, order[before < limit]))


def kept_apart(part: np.ndarray, alike: scipy.sparse.csr_array, order: Sequence[str]) -> np.ndarray:
    """Which documents may stay where they are, if no near-duplicate of a document may be in an earlier part.

    Parameters
    ----------
    part : str array of shape (n,)
    alike : sparse bool array of shape (n, n)
    order : sequence of str
        Parts, such as 'train', 'validation' and 'test': what is like a document of a later one is left out.

    Returns
    -------
    bool array of shape (n,)
        All documents of the last part are kept.
    """
    place = np.array([order.index(name) for name in part.tolist()], np.int64)
    kept = np.ones(len(part), np.bool_)
    for later in range(len(order) - 1, 0, -1):
        kept &= (place >= later) | (alike @ (kept & (place == later)).astype(np.int32) == 0)
    return kept


def _runs(words: np.ndarray, run: int) -> np.ndarray:
    """Hashes of the distinct runs: uint64 array."""
    if len(words) < run:
        return np.empty(0, np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, size=run, dtype=np.uint64) | np.uint64(1)
    hashed = np.zeros(len(words) - run + 1, np.uint64)
    for j, factor in enumerate(factors):
        mixed = (words[j : len(words) - run + 1 + j] + np.uint64(1)) * factor
        hashed += mixed ^ (mixed >> np.uint64(29))
    return np.unique(hashed)
