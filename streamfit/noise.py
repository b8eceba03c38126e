"""What rounding may have left on the diagonal of a Gram matrix, and which features it may have swallowed.

Floor 2: imports exact, frame, precision.
"""

from __future__ import annotations

import numpy as np

from streamfit.arrays import Precision
from streamfit.frame import BLOCK_ROWS
from streamfit.precision import product_error

_EPS = float(np.finfo(np.float64).eps)
_USUAL_BLOCK = BLOCK_ROWS // 4
"""Rows of a block, as a rule: shards may end before it is full."""


def diagonal_noise(
    raw: np.ndarray,
    bottom: int,
    n_rows: int,
    weight: float,
    units: np.ndarray,
    mean_x: np.ndarray,
    precision: Precision,
) -> np.ndarray:
    """What rounding may have left on the diagonal of the centred Gram matrix; see `Centered.noise`.

    Parameters
    ----------
    raw : array of shape (n_features,)
        The diagonal before centring, in the units of the frame.
    bottom : int
        Exponent of the grid's step.
    n_rows : int
    weight : float
    units, mean_x : arrays of shape (n_features,)
    precision : Precision
    """
    # Roundings of blocks, at most one a row, each uniform within half a step: three of their sum's deviations.
    of_sums = product_error(precision) * raw + 2.0**bottom * (1.0 + np.sqrt(abs(n_rows)))
    return np.asarray(units**2 * of_sums + weight * (8.0 * _EPS * mean_x) ** 2)


def hidden_features(
    raw: np.ndarray,
    diagonal: np.ndarray,
    noise: np.ndarray,
    bottom: int,
    n_rows: int,
    weight: float,
    units: np.ndarray,
    origin: np.ndarray,
    sum_x: np.ndarray,
    precision: Precision,
) -> np.ndarray:
    """Features whose variation rounding may have swallowed: see `Centered.hidden`.

    Blocks are of many rows as a rule, and leave less of a constant than the bound: more than that is a sign. So
    is a mean away from the origin, by more than the origin's own rounding, where products left nothing.
    """
    mean_x = origin + units * (sum_x / weight)
    usual = diagonal_noise(raw, bottom, n_rows // _USUAL_BLOCK, weight, units, mean_x, precision)
    grid = 2.0**bottom * (1.0 + np.sqrt(abs(n_rows)))
    moved = np.abs(units * (sum_x / weight)) > 2.0**-22 * np.abs(origin)
    return np.asarray((diagonal <= noise) & ((diagonal > 4.0 * usual) | ((raw <= grid) & moved)))
