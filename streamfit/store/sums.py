"""Moments, triangles and counts as the named arrays of a segment, and back.

Floor 4: imports moments, sparse_moments, triangle, exact, counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from streamfit.arrays import Precision
from streamfit.centered import Statistic
from streamfit.errors import StoreError
from streamfit.exact import BASE, COARSE, DIGIT_BITS, GridSum
from streamfit.frame import Frame, n_tiles, tile_size
from streamfit.merging import BlockTable, LargeTables
from streamfit.moments import Moments
from streamfit.sparse_moments import SparseMoments
from streamfit.sparse_sum import SparseSum
from streamfit.store.arrays_io import COUNT_ROWS, Tiles
from streamfit.triangle import Triangle

SUMS = ("weight", "sum_x", "sum_y", "sum_yy", "gram", "cross")
_SUFFIX = {COARSE: "_coarse", BASE: "", BASE - DIGIT_BITS: "_fine"}
_A = TypeVar("_A")
_TALLY = "tally_"
_FACTOR = "factor"
_STARTS, _COLUMNS, _ROUNDED = "gram_indptr", "gram_indices", "rounded"
_LARGE = 2**24


def is_count(name: str) -> bool:
    """Whether an array of a segment belongs to a table of counts."""
    return name.startswith(_TALLY)


def arrays_of(moments: Statistic, tables: LargeTables | None = None) -> dict[str, np.ndarray | Tiles]:
    """Arrays of a segment.

    A sum is one array for each limb: digits times their step, an exact product, so that any tool reads plain numbers.
    A triangle is one array `factor`. A sparse Gram matrix is its entries row by row (CSR), each limb an array.
    """
    arrays = table_arrays(tables or {})
    host = moments.to_host()
    if isinstance(host, Triangle):
        return {**arrays, _FACTOR: host.factor}
    if isinstance(host, SparseMoments):
        rows = np.searchsorted(host.gram.rows, np.arange(host.gram.size + 1))
        arrays |= {_STARTS: rows.astype(np.int64), _COLUMNS: host.gram.columns.astype(np.int32)}
        arrays[_ROUNDED] = np.array([host.n_rounded], dtype=np.int64)
    for sums in SUMS:
        held = getattr(host, sums)
        total: GridSum = held.entries if isinstance(held, SparseSum) else held
        for i, limb in enumerate(total.limbs):
            exponent = total.top - DIGIT_BITS * i
            arrays[sums + _SUFFIX[exponent]] = _in_units(limb, exponent)
    return arrays


def _in_units(limb: np.ndarray, exponent: int) -> np.ndarray | Tiles:
    """A limb times its step; a large matrix tile by tile, for there may not be room for a second one."""
    if limb.ndim == 3 and limb.nbytes > _LARGE:
        return Tiles(limb.shape, (1, *limb.shape[1:]), lambda i: limb[i : i + 1] * 2.0**exponent)
    array = limb * 2.0**exponent
    return array.reshape(1) if array.ndim == 0 else array


def moments_of(
    arrays: Mapping[str, np.ndarray], frame: Frame, one_hot: bool, n_rows: int, where: str, precision: Precision
) -> Moments:
    """Inverse of `arrays_of`.

    Raises
    ------
    StoreError
        If an array is missing, or of another shape than the frame demands.
    """
    d, k, b = frame.n_features, frame.n_targets, tile_size(frame.n_features)
    shapes = {"weight": (1,), "sum_x": (d,), "gram": (n_tiles(d), b, b), "cross": (k, d)}
    sums = {}
    for name in SUMS:
        total = sum_of(arrays, name, shapes.get(name, (k,)), where)
        sums[name] = GridSum(tuple(limb[0] for limb in total.limbs), total.top) if name == "weight" else total
    return Moments(frame, one_hot, n_rows, **sums, precision=precision)


def sparse_moments_of(
    arrays: Mapping[str, np.ndarray], frame: Frame, one_hot: bool, n_rows: int, where: str
) -> SparseMoments:
    """Inverse of `arrays_of` for sparse sums.

    Raises
    ------
    StoreError
        If an array is missing or of another shape, or entries are not in the order of their places.
    """
    d, k = frame.n_features, frame.n_targets
    starts, columns, rounded = (arrays.get(name, np.zeros(0, np.int64)) for name in (_STARTS, _COLUMNS, _ROUNDED))
    counts = np.diff(starts)
    whole = starts.shape == (d + 1,) and rounded.shape == (1,) and columns.ndim == 1
    if not whole or starts[0] != 0 or starts[-1] != len(columns) or (counts < 0).any():
        msg = f"{_STARTS}, {_COLUMNS} or {_ROUNDED} of {where} was altered"
        raise StoreError(msg, f"the rows of a sparse matrix of {d} features", "restore it from a backup")
    rows = np.repeat(np.arange(d), counts)
    keys = rows * d + columns
    if (np.diff(keys) <= 0).any() or (columns < rows).any() or (columns >= d).any():
        msg = f"{_COLUMNS} of {where} was altered"
        raise StoreError(msg, "entries of the upper triangle, in order", "restore it from a backup")
    sums: dict[str, GridSum] = {}
    shapes = {"weight": (1,), "sum_x": (d,), "gram": (len(columns),), "cross": (k, d)}
    for name in SUMS:
        sums[name] = sum_of(arrays, name, shapes.get(name, (k,)), where)
    weight = sums.pop("weight")
    weight = GridSum(tuple(limb[0] for limb in weight.limbs), weight.top)
    gram = SparseSum(d, keys, sums.pop("gram"))
    return SparseMoments(frame, one_hot, n_rows, int(rounded[0]), weight=weight, gram=gram, **sums)


def digest_of_arrays(arrays: Mapping[str, np.ndarray | Tiles]) -> str:
    """SHA-256 over names, types, shapes and bytes of arrays, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name}:{array.dtype.str}:{array.shape}".encode())
        for piece in (piece for _, piece in array.pieces()) if isinstance(array, Tiles) else [array]:
            a = np.ascontiguousarray(piece)
            digest.update(a.data if a.size else b"")
    return digest.hexdigest()


def triangle_of(arrays: Mapping[str, np.ndarray], frame: Frame, one_hot: bool, n_rows: int, where: str) -> Triangle:
    """The triangle of a segment.

    Raises
    ------
    StoreError
        If it is missing or of another shape than the frame demands.
    """
    n, factor = 1 + frame.n_features + frame.n_targets, arrays.get(_FACTOR)
    if factor is None or factor.shape != (n, n):
        msg = f"{_FACTOR} of {where} was altered"
        raise StoreError(msg, f"shape {(n, n)}", "restore it from a backup")
    return Triangle(frame, one_hot, n_rows, factor)


def limb_names(name: str) -> tuple[str, ...]:
    """Names that the arrays of one sum may have, from the coarsest limb to the finest."""
    return tuple(name + suffix for suffix in _SUFFIX.values())


def sum_of(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], where: str) -> GridSum:
    """One exact sum of its arrays, which are overwritten: they may be half of the memory that there is.

    Raises
    ------
    StoreError
        If it is missing or of another shape.
    """
    there = [(exponent, name + suffix) for exponent, suffix in _SUFFIX.items() if name + suffix in arrays]
    # Chunks carry checksums, the JSON beside them does not.
    if not there or any(arrays[key].shape != shape for _, key in there):
        msg = f"{name} of {where} was altered"
        raise StoreError(msg, f"shape {shape}", "restore it from a backup")
    limbs = tuple(np.multiply(a := arrays[key], 2.0**-exponent, out=a) for exponent, key in there)
    return GridSum(limbs, there[0][0])


def table_arrays(tables: LargeTables) -> dict[str, np.ndarray | Tiles]:
    """Arrays of tables of counts; `tables_of` is the inverse."""
    arrays: dict[str, np.ndarray | Tiles] = {}
    for name, table in tables.items():
        arrays[f"{_TALLY}{name}_keys"], arrays[f"{_TALLY}{name}_counts"] = _columns(table)
    return arrays


def tables_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tables of counts among the arrays of a segment."""
    return pairs_of(arrays)


def pairs_of(arrays: Mapping[str, _A]) -> dict[str, tuple[_A, _A]]:
    """Keys and counts of each table among the arrays of a segment, read or not."""
    names = {name.removeprefix(_TALLY).rpartition("_")[0] for name in arrays if is_count(name)}
    return {name: (arrays[f"{_TALLY}{name}_keys"], arrays[f"{_TALLY}{name}_counts"]) for name in sorted(names)}


def _columns(table: tuple[np.ndarray, np.ndarray] | BlockTable) -> tuple[np.ndarray | Tiles, np.ndarray | Tiles]:
    """Keys and counts, made while they are written if they are not in memory."""
    if not isinstance(table, BlockTable):
        return table
    if not table.n_rows:  # an array of no rows has no pieces
        return table.whole()

    def part(read: Callable[[int, int], np.ndarray]) -> Callable[[int], np.ndarray]:
        return lambda i: read(i * COUNT_ROWS, min((i + 1) * COUNT_ROWS, table.n_rows))

    keys = Tiles((table.n_rows, table.width), (COUNT_ROWS, table.width), part(table.keys), table.dtype)
    return keys, Tiles((table.n_rows,), (COUNT_ROWS,), part(table.counts), np.dtype(np.int64))
