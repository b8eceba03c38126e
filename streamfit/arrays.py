"""The one place that knows which array library and device a computation runs on.

Floor 1. Numeric code asks an array for its namespace (`namespace`) and stays in it; only this file names
cupy, and only this file moves data between host and device.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any, Literal

import array_api_compat
import numpy as np
import scipy.linalg
import scipy.sparse

from streamfit.errors import ConfigError

Array = Any
"""An array of any library that follows the array API standard (NumPy, CuPy, array-api-strict)."""

Precision = Literal["float32", "float64"]
"""What features and block products are computed in. Sums are float64 always."""


Backend = Literal["numpy", "cuda"]
"""Array library that a worker computes with."""

_CACHE_ENTRIES = 2**15
_FEW_ROWS = 16


def namespace(*arrays: Array) -> Any:
    """Array-API namespace of the arrays."""
    return array_api_compat.array_namespace(*arrays)


def device_of(array: Array) -> Any:
    """Device that the array lives on."""
    return array_api_compat.device(array)


def to_host(array: Array) -> np.ndarray:
    """Copy an array to host memory (no copy when it is there already)."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "get"):  # cupy
        host: np.ndarray = array.get()
        return host
    xp = namespace(array)
    if hasattr(xp, "Device"):  # array-api-strict refuses implicit transfers, as a GPU does
        array = xp.asarray(array, device=xp.Device("CPU_DEVICE"))
    return np.asarray(array)


def to_device_of(host: np.ndarray, like: Array) -> Array:
    """Copy a host array to the library and device of `like`."""
    if isinstance(like, np.ndarray):
        return host
    return namespace(like).asarray(host, device=device_of(like))


def device_array(host: np.ndarray, backend: Backend) -> Array:
    """Put a host array where a worker of the given backend computes.

    Raises
    ------
    ConfigError
        If the backend is unknown, or `cuda` is asked for and CuPy is not installed.
    """
    if backend == "numpy":
        return host
    if backend != "cuda":
        msg = f"array backend {backend!r}"
        raise ConfigError(msg, "'numpy' or 'cuda'")
    if importlib.util.find_spec("cupy") is None:
        msg = "array backend 'cuda', but CuPy is not installed"
        raise ConfigError(msg, "an importable cupy", "pip install 'streamfit[cuda]', or use backend 'numpy'")
    import cupy

    return cupy.asarray(host)


def compute_dtype(xp: Any, precision: Precision) -> Any:
    """Floating-point type of features and block products under a precision policy."""
    if precision not in ("float32", "float64"):
        msg = f"precision {precision!r}"
        raise ConfigError(msg, "'float32' or 'float64'")
    return xp.float32 if precision == "float32" else xp.float64


def row_major(array: Array) -> Array:
    """Lay a matrix out row by row: a product's rounding depends on the layout, and equal rows must sum alike."""
    if isinstance(array, np.ndarray) or array_api_compat.is_cupy_array(array):
        return array if array.flags.c_contiguous else array.copy(order="C")
    return array


def r_factor(rows: Array) -> Array:
    """Triangle R of a QR decomposition (Householder, LAPACK or cuSOLVER), its diagonal not negative, zeros below.

    Parameters
    ----------
    rows : floating array of shape (n, p)

    Returns
    -------
    array of shape (p, p)
        Rows of zeros at its end where n < p.
    """
    xp, (n, p) = namespace(rows), rows.shape
    if isinstance(rows, np.ndarray):
        r = scipy.linalg.qr(rows, mode="r", check_finite=False)[0][:p]
    elif array_api_compat.is_cupy_array(rows):
        r = xp.linalg.qr(rows, mode="r")
    else:
        r = xp.linalg.qr(rows, mode="reduced").R
    if n < p:
        r = xp.concat([r, xp.zeros((p - n, p), dtype=rows.dtype, device=device_of(rows))])
    diagonal = xp.linalg.diagonal(r)
    signs = xp.where(diagonal < 0, -xp.ones_like(diagonal), xp.ones_like(diagonal))
    return xp.triu(r * signs[:, None]) + 0.0  # no -0.0, which has other bits than 0.0


def cached_rows(n_rows: int, n_columns: int, like: Array) -> Iterator[slice]:
    """Cut rows into pieces that a core's cache holds; one piece on a GPU, where a launch costs more than a miss."""
    step = max(1, n_rows)
    if isinstance(like, np.ndarray):
        step = max(_FEW_ROWS, _CACHE_ENTRIES // max(1, n_columns) // _FEW_ROWS * _FEW_ROWS)
    for lo in range(0, n_rows, step):
        yield slice(lo, min(lo + step, n_rows))


def column_sums(rows: Array) -> Array:
    """Float64 sums of columns: a few rows at a time in the rows' own type, which is several times faster."""
    xp = namespace(rows)
    whole = rows.shape[0] // _FEW_ROWS * _FEW_ROWS
    few = xp.sum(xp.reshape(rows[:whole, :], (-1, _FEW_ROWS, rows.shape[1])), axis=1)
    rest = xp.sum(rows[whole:, :], axis=0, dtype=xp.float64)
    return xp.sum(few, axis=0, dtype=xp.float64) + rest


def may_overwrite(array: Array, dtype: Any) -> bool:
    """Whether results of a type can be put in an array's place, row by row."""
    if array.dtype != dtype:
        return False
    if isinstance(array, np.ndarray):
        return bool(array.flags.writeable and array.flags.c_contiguous)
    return bool(array.flags.c_contiguous) if array_api_compat.is_cupy_array(array) else True


def class_sums(
    rows: Array, ids: Array, n_classes: int, *, of: Array | None = None, weights: Array | None = None
) -> tuple[Array | None, Array]:
    """Sum the rows of each class: the product `onehot(ids)' @ rows` without the one-hot matrix.

    Parameters
    ----------
    rows : array of shape (n_rows, n_features)
    ids : integer array of shape (n_rows,)
        Class of each row, in [0, n_classes).
    n_classes : int
    of : integer array, optional
        Row that each id belongs to, where a row has several or none; the i-th id to the i-th row without it.
    weights : floating array of the shape of `ids`, optional
        Factors of the rows in the sums.

    Returns
    -------
    present : integer array of shape (n_present,), or None
        The classes that occur, ascending; None stands for all of them.
    sums : array of shape (n_present, n_features) or (n_classes, n_features)
        In the rows' own type. O(n_rows * n_features) work on NumPy and CuPy.
    """
    xp = namespace(rows)
    values: Any
    if isinstance(rows, np.ndarray):
        values, csr_matrix = np, scipy.sparse.csr_matrix
    elif array_api_compat.is_cupy_array(rows):
        import cupy
        import cupyx.scipy.sparse

        values, csr_matrix = cupy, cupyx.scipy.sparse.csr_matrix
    else:
        # The standard has no segmented sum; this path exists for conformance tests, not for speed.
        classes = xp.arange(n_classes, dtype=ids.dtype, device=device_of(ids))
        onehot = xp.astype(classes[:, None] == ids[None, :], rows.dtype)
        taken = rows if of is None else xp.take(rows, of, axis=0)
        return None, onehot @ (taken if weights is None else taken * xp.astype(weights, rows.dtype)[:, None])
    order = values.argsort(ids, kind="stable")
    present, starts = values.unique(ids[order], return_index=True)
    indptr = values.concatenate([starts, values.asarray([len(ids)], dtype=starts.dtype)])
    factors = values.ones(len(ids), dtype=rows.dtype) if weights is None else weights[order].astype(rows.dtype)
    selector = csr_matrix((factors, order if of is None else of[order], indptr), shape=(len(present), len(rows)))
    return present, selector @ rows
