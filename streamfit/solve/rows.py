"""Rows of features as the results of a solve read them. Floor 3: imports arrays, errors."""

from __future__ import annotations

import numpy as np

from streamfit.arrays import Array, to_host
from streamfit.errors import MismatchError


def host_rows(phi: Array, n_columns: int) -> np.ndarray:
    """Rows in host memory as float64, once their shape was found to fit.

    Parameters
    ----------
    phi : array of shape (n_rows, n_columns)
    n_columns : int

    Raises
    ------
    MismatchError
        If the shape is another.
    """
    if phi.ndim != 2 or phi.shape[1] != n_columns:
        msg = f"rows of shape {tuple(phi.shape)}"
        raise MismatchError(msg, f"(n_rows, {n_columns})", "make them with the features that were summed")
    return to_host(phi).astype(np.float64, copy=False)
