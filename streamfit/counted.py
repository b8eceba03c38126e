"""Equal rows of a shard, found and counted, so that each is multiplied once.

Floor 2: imports arrays, counts, errors, frame, targets. Rows are equal where their inputs have the same bytes; what is
found is a function of the rows alone, in their order, and so are the sums of a shard that is counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from streamfit.arrays import Array
from streamfit.counts import row_keys, run_firsts
from streamfit.errors import ConfigError, MismatchError
from streamfit.frame import BLOCK_ROWS, Frame, tile_size
from streamfit.targets import Targets

PIECE_ROWS = 2**20
"""Rows among which equal ones are looked for, from the first of a shard. Their counts are exact in float32."""
_PIECE_VALUES = 2**24
_FEW = 128
"""Rows of one product whose time the rounding and adding of the product takes, or a bit more."""
_CHUNK = 2**14
_TRIES = 4


@dataclass(frozen=True)
class ClassCounts:
    """Classes of distinct rows.

    Parameters
    ----------
    rows : integer array of shape (n_pairs,)
        Distinct row of the block, ascending.
    ids : integer array of shape (n_pairs,)
        Class that occurs with it, ascending for each row.
    weights : float64 array of shape (n_pairs,)
        Sum of the weights of the rows that are this pair; their number where rows have no weights.
    """

    rows: Array
    ids: Array
    weights: Array


@dataclass(frozen=True)
class TargetSums:
    """Dense targets of distinct rows, in the units of the frame.

    Parameters
    ----------
    sums, squares : float64 array of shape (n_distinct, n_targets)
        Σ w s and Σ w s∘s over the rows that are equal.
    """

    sums: Array
    squares: Array


@dataclass(frozen=True)
class CountedBlock:
    """Up to `BLOCK_ROWS` distinct rows.

    Parameters
    ----------
    x : array of shape (n_distinct, n_inputs)
    weights : float64 array of shape (n_distinct,), or None
        Sum of the weights of the rows that are equal, their number where rows have no weights; None if all are 1.
    targets : ClassCounts or TargetSums
    n_rows : int
        Rows that these stand for.
    """

    x: Array
    weights: Array | None
    targets: ClassCounts | TargetSums
    n_rows: int

    def moved(self, move: Callable[[np.ndarray], Array]) -> CountedBlock:
        """The same block where `move` puts its arrays."""
        weights = None if self.weights is None else move(self.weights)
        moved = {name: move(array) for name, array in vars(self.targets).items()}
        return replace(self, x=move(self.x), weights=weights, targets=replace(self.targets, **moved))


def piece_rows(n_inputs: int, n_values: int) -> int:
    """Rows among which equal ones are looked for: fewer where rows are wide, whole blocks in any case.

    Parameters
    ----------
    n_inputs : int
    n_values : int
        Numbers in the targets of a row: 1 for a class id.
    """
    return max(1, min(PIECE_ROWS, _PIECE_VALUES // (n_inputs + n_values)) // BLOCK_ROWS) * BLOCK_ROWS


def equal_rows(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that are equal.

    Parameters
    ----------
    x : array of shape (n_rows, n_inputs)
        Of at least one row and column.

    Returns
    -------
    order : int64 array of shape (n_rows,)
        Rows, so that equal ones stand together, in their own order.
    starts : int64 array of shape (n_distinct,)
        Where in `order` each distinct row begins.

    Examples
    --------
    >>> order, starts = equal_rows(np.array([[3, 1], [0, 2], [3, 1]]))
    >>> order.tolist(), starts.tolist()
    ([1, 0, 2], [0, 1])
    """
    if x.dtype.kind in "iu" and x.min() >= 0:
        bound = int(x.max()) + 1
        span = bound ** x.shape[1]
        if span << len(x).bit_length() < 2**63:
            return _runs(row_keys(x.T, bound), span)
    words = _words(x)
    bits = 63 - len(x).bit_length()
    for seed in range(_TRIES):  # with 2^20 distinct rows, 42 bits of a hash are not enough for one try in eight
        order, starts = _runs((_hashed(words, seed) >> np.uint64(64 - bits)).astype(np.int64), 2**bits)
        if _verified(words, order, starts):
            return order, starts
    return _sorted_by_words(words)


def _runs(keys: np.ndarray, bound: int) -> tuple[np.ndarray, np.ndarray]:
    """Order of rows by their keys in [0, bound), equal ones in their own order, and where each key begins."""
    bits = len(keys).bit_length()
    if bound << bits > 2**63:
        order = np.argsort(keys, kind="stable")
        return order, np.flatnonzero(run_firsts(keys[order]))
    # Keys with the row's number behind them are sorted several times faster than an argsort takes, and stay in order.
    numbered = (keys.astype(np.int64, copy=False) << bits) | np.arange(len(keys))
    numbered.sort()
    return numbered & (2**bits - 1), np.flatnonzero(run_firsts(numbered >> bits))


def _words(x: np.ndarray) -> np.ndarray:
    """Rows as unsigned integers with the same bytes."""
    if x.dtype.kind == "b" or x.dtype.itemsize < 4 or x.dtype.itemsize > 8:
        x = x.astype(np.float64)
    return np.ascontiguousarray(x).view(np.uint32 if x.dtype.itemsize == 4 else np.uint64)


def _hashed(words: np.ndarray, seed: int) -> np.ndarray:
    """One 64-bit hash a row: each word mixed (Steele, Lea, Flood, Fast splittable generators, 2014), then added up."""
    factors = np.random.default_rng(seed).integers(0, 2**64, words.shape[1], np.uint64) | np.uint64(1)
    found = np.empty(len(words), np.uint64)
    step = max(1, _CHUNK // words.shape[1])
    for lo in range(0, len(words), step):
        mixed = words[lo : lo + step].astype(np.uint64)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= factors
        mixed ^= mixed >> np.uint64(31)
        found[lo : lo + step] = mixed.sum(axis=1, dtype=np.uint64)
    return (found ^ (found >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)


def _verified(words: np.ndarray, order: np.ndarray, starts: np.ndarray) -> bool:
    """Whether neighbours in the order that share a hash are equal."""
    same = np.ones(len(order), bool)
    same[starts] = False
    pairs = np.flatnonzero(same)
    step = max(1, _CHUNK // words.shape[1])
    for lo in range(0, len(pairs), step):
        at = pairs[lo : lo + step]
        if not np.array_equal(words[order[at]], words[order[at - 1]]):
            return False
    return True


def _sorted_by_words(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort(words.T[::-1])
    firsts = np.ones(len(order), bool)
    firsts[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    return order, np.flatnonzero(firsts)


def count_rows(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, frame: Frame, targets: Targets
) -> Iterator[CountedBlock]:
    """Distinct rows with how often each occurs, in blocks for `MomentsAccumulator.add_counted`.

    Rows that occur once come first, in blocks of their own, where they are enough to make up for that: the product of
    rows without weights is one of a matrix with itself, which takes half the work.

    Parameters
    ----------
    x : array of shape (n_rows, n_inputs)
    y : floating array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
    weights : floating array of shape (n_rows,), optional
        Nonnegative and finite; 1 for every row without it.
    frame : Frame
    targets : Targets

    Raises
    ------
    MismatchError
        If shapes do not fit, or class ids are not integers.
    ConfigError
        If a class id or a row weight is out of range.
    """
    _check(x, y, weights, targets)
    if not len(x):
        return
    order, starts = equal_rows(x)
    times = np.diff(starts, append=len(order))
    n_single = 0
    if weights is None:
        single = int(np.count_nonzero(times == 1))
        # What the split saves is in the diagonal tiles alone.
        n_single = single if single > _FEW * -(-frame.n_features // tile_size(frame.n_features)) else 0
    if n_single:
        order, starts, times = _singles_first(order, starts, times)
    w = None if weights is None else weights[order].astype(np.float64)
    totals = times.astype(np.float64) if w is None else np.add.reduceat(w, starts)
    edges = [*range(0, n_single, BLOCK_ROWS), *range(n_single, len(starts), BLOCK_ROWS), len(starts)]
    ends = np.append(starts, len(order))
    for lo, hi in itertools.pairwise(edges):
        rows = slice(int(ends[lo]), int(ends[hi]))
        distinct = np.repeat(np.arange(hi - lo), times[lo:hi])
        values, some = y[order[rows]], None if w is None else w[rows]
        found: ClassCounts | TargetSums
        if targets.one_hot:
            found = _class_counts(distinct, values, some, targets.n_targets)
        else:
            found = _target_sums(values, some, starts[lo:hi] - starts[lo], frame)
        yield CountedBlock(x[order[starts[lo:hi]]], None if hi <= n_single else totals[lo:hi], found, len(values))


def _singles_first(
    order: np.ndarray, starts: np.ndarray, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    again = np.repeat(times > 1, times)
    moved = np.concatenate([times[times == 1], times[times > 1]])
    return np.concatenate([order[~again], order[again]]), np.cumsum(moved) - moved, moved


def _class_counts(distinct: np.ndarray, ids: np.ndarray, weights: np.ndarray | None, n_classes: int) -> ClassCounts:
    keys = distinct * n_classes + ids
    order, starts = _runs(keys, (int(distinct[-1]) + 1) * n_classes)
    found = keys[order[starts]]
    total = np.diff(starts, append=len(order)) if weights is None else np.add.reduceat(weights[order], starts)
    return ClassCounts(found // n_classes, found % n_classes, total.astype(np.float64))


def _target_sums(y: np.ndarray, weights: np.ndarray | None, starts: np.ndarray, frame: Frame) -> TargetSums:
    s = (y.astype(np.float64) - frame.y_origin) * np.ldexp(1.0, -frame.y_exponents)
    ws = s if weights is None else s * weights[:, None]
    return TargetSums(np.add.reduceat(ws, starts, axis=0), np.add.reduceat(ws * s, starts, axis=0))


def _check(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, targets: Targets) -> None:
    n, k = len(x), targets.n_targets
    wanted = (n,) if targets.one_hot else (n, k)
    if x.ndim != 2 or not x.shape[1] or y.shape != wanted or (targets.one_hot and y.dtype.kind not in "iu"):
        msg = f"inputs of shape {x.shape} with targets of shape {y.shape} and type {y.dtype}"
        raise MismatchError(msg, f"(n_rows, n_inputs) and {wanted}{', integers' if targets.one_hot else ''}")
    if targets.one_hot and n and (y.min() < 0 or y.max() >= k):
        msg = f"class id {y.min() if y.min() < 0 else y.max()}"
        raise ConfigError(msg, f"ids in [0, {k})")
    if weights is not None:
        if weights.shape != (n,):
            msg = f"row weights of shape {weights.shape}"
            raise MismatchError(msg, f"({n},)")
        if not (np.isfinite(weights) & (weights >= 0)).all():
            msg = "a row weight that is negative, NaN or infinite"
            raise ConfigError(msg, "finite weights >= 0")
