"""Tables of counted integer keys: the sums that stand beside the moments, n-gram counts for one. They add exactly too.

Floor 2: imports numpy and errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from streamfit.errors import MismatchError

Ids = npt.NDArray[np.integer[Any]]
Int64 = npt.NDArray[np.int64]
Keys = TypeVar("Keys", bound=Ids)

Tables = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Counted keys by name: keys of shape (n, width), and int64 counts of shape (n,)."""

_KEY_LIMIT = 2**63 - 1  # keys are int64


def add_counts(keys: Keys, counts: Int64) -> tuple[Keys, Int64]:
    """Sum the counts of equal keys and drop those that come to nothing.

    Parameters
    ----------
    keys : int array of shape (n, width)
        Nonnegative; several tables below one another.
    counts : int64 array of shape (n,)
        Negative to take away.

    Returns
    -------
    keys : distinct rows in lexicographic order
    counts : int64 array, positive

    Raises
    ------
    MismatchError
        If a count would be negative.

    Examples
    --------
    >>> keys, counts = add_counts(np.array([[1, 2], [0, 5], [1, 2]]), np.array([1, 4, 2]))
    >>> keys.tolist(), counts.tolist()
    ([[0, 5], [1, 2]], [4, 3])
    """
    if not len(keys):
        return keys, counts
    bound = int(keys.max()) + 1 if keys.size else 1
    packed = row_keys(keys.T, bound)
    order = np.argsort(packed, kind="stable")  # stable merges tables that are sorted already in linear time
    starts = np.flatnonzero(run_firsts(packed[order]))
    keys, counts = cast("Keys", keys[order[starts]]), np.add.reduceat(counts[order], starts)
    if np.any(counts < 0):
        worst = int(np.argmin(counts))
        msg = f"a count of {counts[worst]} for {keys[worst].tolist()}"
        raise MismatchError(msg, "0 or more", "subtract only counts that were added before")
    kept = counts > 0
    return cast("Keys", keys[kept]), counts[kept]


def add_tables(tables: Iterable[Tables], signs: Iterable[int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sum tables of counts, some of them taken away.

    Raises
    ------
    MismatchError
        If a count would be negative.
    """
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for table, sign in zip(tables, signs, strict=True):
        for name, (keys, counts) in table.items():
            parts.setdefault(name, []).append((keys, sign * counts))
    return {
        name: add_counts(np.concatenate([k for k, _ in pairs]), np.concatenate([c for _, c in pairs]))
        for name, pairs in parts.items()
    }


def row_keys(columns: Iterable[Ids], bound: int) -> Int64:
    """Return one int64 for each row that sorts as the row does, for any number of columns of values below `bound`."""
    keys, span = np.zeros((), np.int64), 1
    for column in columns:
        if span > _KEY_LIMIT // bound:
            distinct, keys = np.unique(keys, return_inverse=True)
            span = distinct.size
        keys = keys * bound + column
        span *= bound
    return keys


def run_firsts(ordered: Ids) -> npt.NDArray[np.bool_]:
    """Mark where a new value begins in a sorted array."""
    first = np.ones(ordered.size, np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return first
