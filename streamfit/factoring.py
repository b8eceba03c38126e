"""Dense symmetric matrices of the host, factored where one is told to: by LAPACK, or on a GPU by cuSOLVER.

Floor 1: imports arrays and errors. Matrices come from the host and results go back to it: copying n² numbers is little
beside n³ operations on them. Certificates are computed of what came back, so that they hold wherever it was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import scipy.linalg

from streamfit.arrays import (
    Array,
    cholesky_factor,
    cholesky_solve,
    eigenpairs,
    eigenvalues,
    free_bytes,
    to_device_of,
    to_host,
)
from streamfit.errors import SolveError

_PLACE: ContextVar[Array] = ContextVar("an array where matrices are factored")
_HOST = np.empty(0)
_COLUMNS = 1024
"""Right sides that are on the device at a time."""


@contextmanager
def factored_on(like: Array) -> Iterator[None]:
    """Factor in the library and on the device of an array, in this thread, until the block ends."""
    token = _PLACE.set(like)
    try:
        yield
    finally:
        _PLACE.reset(token)


def cholesky(system: np.ndarray) -> np.ndarray | None:
    """Lower Cholesky factor; None where the matrix is not definite.

    Raises
    ------
    SolveError
        As all functions here, if the device has no room.
    """
    factor = cholesky_factor(_placed(system, 3))
    return None if factor is None else to_host(factor)


def cho_solve(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Solve ``L L' x = right`` with the lower factor L; `right` of shape (n,) or (n, k)."""
    if isinstance(_PLACE.get(_HOST), np.ndarray):
        return np.asarray(cholesky_solve(factor, right))
    there, columns = _placed(factor, 3), right.reshape(len(right), -1)
    found = [
        to_host(cholesky_solve(there, to_device_of(np.ascontiguousarray(columns[:, lo : lo + _COLUMNS]), there)))
        for lo in range(0, columns.shape[1], _COLUMNS)
    ]
    return np.concatenate(found, axis=1).reshape(right.shape) if found else np.zeros(right.shape)


def eigvalsh(symmetric: np.ndarray) -> np.ndarray:
    """Eigenvalues in ascending order."""
    return eigenvalues(_placed(symmetric, 4))


def eigh(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues in ascending order, and eigenvectors as columns."""
    values, vectors = eigenpairs(_placed(symmetric, 4))
    return to_host(values), to_host(vectors)


def condition(factor: np.ndarray, norm: float) -> float:
    """Estimate of 1/condition of a factored matrix of given 1-norm (LAPACK dpocon); 0 where there is none."""
    rcond, info = scipy.linalg.lapack.dpocon(factor, norm, uplo="L")
    return float(rcond) if info == 0 else 0.0


def _placed(matrix: np.ndarray, n_copies: int) -> Array:
    """A matrix where it is factored, with room for copies of it."""
    like = _PLACE.get(_HOST)
    free, need = free_bytes(like), n_copies * matrix.nbytes
    if free is not None and need > free:
        sizes = f"{need / 1e9:.1f} GB, with {free / 1e9:.1f} GB free"
        msg = f"{len(matrix):,} x {len(matrix):,} numbers to factor on a GPU: {sizes}"
        raise SolveError(msg, "a matrix that fits", "solve on the host: backend 'numpy'")
    return to_device_of(matrix, like)
