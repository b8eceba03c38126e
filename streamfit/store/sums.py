"""Moments, triangles and counts as the named arrays of a segment, and back.

Floor 4: imports moments, triangle, exact, counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from streamfit.arrays import Precision
from streamfit.centered import Statistic
from streamfit.counts import Tables
from streamfit.errors import StoreError
from streamfit.exact import BASE, COARSE, DIGIT_BITS, GridSum
from streamfit.frame import Frame, n_tiles, tile_size
from streamfit.moments import Moments
from streamfit.store.arrays_io import Tiles
from streamfit.triangle import Triangle

SUMS = ("weight", "sum_x", "sum_y", "sum_yy", "gram", "cross")
_SUFFIX = {COARSE: "_coarse", BASE: "", BASE - DIGIT_BITS: "_fine"}
_TALLY = "tally_"
_FACTOR = "factor"
_LARGE = 2**24


def is_count(name: str) -> bool:
    """Whether an array of a segment belongs to a table of counts."""
    return name.startswith(_TALLY)


def arrays_of(moments: Statistic, tables: Tables | None = None) -> dict[str, np.ndarray | Tiles]:
    """Arrays of a segment.

    A sum is one array for each limb: digits times their step, an exact product, so that any tool reads plain numbers.
    A triangle is one array `factor`.
    """
    arrays: dict[str, np.ndarray | Tiles] = {}
    for name, (keys, counts) in (tables or {}).items():
        arrays[f"{_TALLY}{name}_keys"], arrays[f"{_TALLY}{name}_counts"] = keys, counts
    host = moments.to_host()
    if isinstance(host, Triangle):
        return {**arrays, _FACTOR: host.factor}
    for sums in SUMS:
        total: GridSum = getattr(host, sums)
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


def tables_of(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tables of counts among the arrays of a segment."""
    names = {name.removeprefix(_TALLY).rpartition("_")[0] for name in arrays if is_count(name)}
    return {name: (arrays[f"{_TALLY}{name}_keys"], arrays[f"{_TALLY}{name}_counts"]) for name in sorted(names)}
