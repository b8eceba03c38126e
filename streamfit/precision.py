"""What a precision means: how features are rounded before they are multiplied, and what that costs.

Floor 1: imports arrays. Under 'tf32' and 'bf16' features (after the frame's shift and scale) are rounded to numbers of
11 and 8 significant bits and kept as float32. Products of two of them are exact in float32, so that a tensor core,
which multiplies such numbers and adds in float32, computes what NumPy computes but for the order of the additions.
"""

from __future__ import annotations

import numpy as np

from streamfit.arrays import Array, Precision, compute_dtype, has_bits, namespace

_SIGNIFICANT_BITS = {"tf32": 11, "bf16": 8}
_LEAST_EXPONENT = -126
"""Of a normal float32; numbers below it share one spacing in float32, tf32 and bf16 alike."""


def n_limbs(precision: Precision) -> int:
    """Limbs that sums of products are kept in from the start: a finer one where products are float64."""
    return 2 if precision == "float64" else 1


def item_bytes(precision: Precision) -> int:
    """Bytes of one feature."""
    return 8 if precision == "float64" else 4


def product_error(precision: Precision) -> float:
    """What rounding leaves of a sum of squares, relative to it, to first order.

    Unit roundoff of the products' additions; and of the features, squared, for their errors are as often up as down: a
    column that falls on either side of a rounding boundary varies by its own unit roundoff.
    """
    if precision == "float64":
        return float(np.finfo(np.float64).eps)
    bits = _SIGNIFICANT_BITS.get(precision)
    return 2.0**-24 + (0.0 if bits is None else 4.0**-bits)


def rounded(values: Array, precision: Precision) -> Array:
    """Round to what a precision's products take, to nearest, ties to even; float32 and float64 stay as they are.

    Parameters
    ----------
    values : float32 array under 'tf32' and 'bf16'
        It is not changed.
    precision : Precision

    Returns
    -------
    array
        Of the same type. What is not finite stays so; what rounds beyond the largest float32 becomes infinite.

    Examples
    --------
    >>> rounded(np.array([1.0, 1.00390625, 1.01171875], np.float32), "bf16").tolist()
    [1.0, 1.0, 1.015625]
    """
    bits = _SIGNIFICANT_BITS.get(precision)
    if bits is None:
        return values
    return by_bits(values, bits) if has_bits(values) else by_addition(values, bits)


def by_bits(values: Array, significant_bits: int) -> Array:
    """Round float32 by its bits: adding half a unit, less one where the last kept bit is 0, carries as it should."""
    xp, dropped = namespace(values), 24 - significant_bits
    bits = values.view(xp.uint32)
    last = (bits >> dropped) & 1
    bits = (bits + (last + ((1 << (dropped - 1)) - 1))) & (0xFFFFFFFF ^ ((1 << dropped) - 1))
    # The carry could turn a NaN's payload into a number.
    return xp.where(xp.isfinite(values), xp.astype(bits, xp.uint32, copy=False).view(xp.float32), values)


def by_addition(values: Array, significant_bits: int) -> Array:
    """Round float32 without a view of its bits, by one addition in float64 (Dekker, 1971).

    With p significant bits and x in [2^e, 2^(e+1)), ``x 2^(53-p) + x`` is spaced by 2^(e+1-p), the unit of the result,
    and the first term is a multiple of it by an even number: so the sum is rounded as x should be, ties included, and
    subtracting the first term is exact. It stays in its binade, for x has 24 bits and 53 - p is more. Below the normal
    numbers the unit is that of 2^-126: the first term is then a number of that spacing.
    """
    xp = namespace(values)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        x = xp.astype(values, xp.float64)
    scale = 2.0 ** (53 - significant_bits)
    subnormal = xp.abs(x) < 2.0**_LEAST_EXPONENT
    large = xp.where(subnormal, xp.full_like(x, 1.5 * 2.0**_LEAST_EXPONENT * scale), x * scale)
    with np.errstate(invalid="ignore", over="ignore"):
        result = xp.astype((large + x) - large, xp.float32)
    # The sign of zero goes the way of the bits.
    with np.errstate(invalid="ignore"):
        signed = xp.where(result == 0, xp.astype(x * 0.0, xp.float32), result)
    return xp.where(xp.isfinite(values), signed, values)


def parts(values: Array, precision: Precision) -> tuple[Array, ...]:
    """Weighted features as one array, or the sum of two, that products take as they are.

    A weight times a feature has more bits than a tensor core reads. Two parts hold twice as many: whole weights up to
    2^8 (bf16) or 2^11 (tf32) are exact, so that a row of weight 3 counts as three rows.
    """
    if precision not in _SIGNIFICANT_BITS:
        return (values,)
    high = rounded(values, precision)
    return high, rounded(values - high, precision)


def feature_type(precision: Precision) -> np.dtype[np.floating]:
    """NumPy's type of features under a precision."""
    kind: np.dtype[np.floating] = np.dtype(compute_dtype(np, precision))
    return kind
