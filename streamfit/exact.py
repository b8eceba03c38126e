"""Sums without rounding: float64 arrays that hold integers on fixed power-of-two grids.

Floor 2: imports pieces, arrays and errors. Integers below 2^53 add in float64 without error, so a total does not
depend on the order, grouping or number of the additions, and what was added can be taken out again, bit for
bit. A sum is one to three *limbs*, digits in base 2^36: the base limb counts steps of 2^-16, a finer one
(kept from the start where products are float64) steps of 2^-52, a coarser one (taken when room runs out)
steps of 2^20. The form is canonical: equal totals have equal limbs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfit.arrays import Array, device_of, in_place, namespace, to_host
from streamfit.errors import MismatchError, ScaleError
from streamfit.pieces import cached_rows

DIGIT_BITS = 36
BASE = -16
FINE = BASE - DIGIT_BITS
COARSE = BASE + DIGIT_BITS
MAX_ADDS = 2**15
"""Additions between two carries: digits below 2^36 then stay far below 2^53."""
ROOM = 2.0**52
"""Steps that one limb may hold; half of what float64 counts exactly, so a sum of two stays exact."""


@dataclass(frozen=True)
class GridSum:
    """An exact sum, as limbs from the coarsest to the finest.

    Parameters
    ----------
    limbs : tuple of float64 arrays, all of one shape
        Integer-valued digits. All but the first lie in [-2^35, 2^35).
    top : int
        Exponent of the first limb's step: 20 or -16. Each further limb is 2^36 times finer.
    """

    limbs: tuple[Array, ...]
    top: int = BASE

    @property
    def bottom(self) -> int:
        """Exponent of the finest limb's step."""
        return self.top - DIGIT_BITS * (len(self.limbs) - 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the summed array."""
        return tuple(self.limbs[0].shape)

    def value(self) -> Array:
        """The sum in float64: correctly rounded from up to two limbs, within one unit in the last place from three."""
        total = self.limbs[-1] * 2.0**self.bottom
        for i in range(len(self.limbs) - 2, -1, -1):
            total = self.limbs[i] * 2.0 ** (self.top - DIGIT_BITS * i) + total
        return total

    def __add__(self, other: GridSum) -> GridSum:
        return self._combine(other, 1.0)

    def __sub__(self, other: GridSum) -> GridSum:
        return self._combine(other, -1.0)

    def _combine(self, other: GridSum, sign: float) -> GridSum:
        if self.shape != other.shape:
            msg = f"sums of shapes {self.shape} and {other.shape}"
            raise MismatchError(msg, "equal shapes")
        if self.bottom != other.bottom:
            msg = f"sums on grids 2^{self.bottom} and 2^{other.bottom}"
            raise MismatchError(msg, "equal precision", "fit both with the same precision")
        top = max(self.top, other.top)
        pairs = zip(self._raised(top), other._raised(top), strict=True)
        return canonical(tuple(a + sign * b for a, b in pairs), top)

    def _raised(self, top: int) -> tuple[Array, ...]:
        extra = (top - self.top) // DIGIT_BITS
        xp = namespace(self.limbs[0])
        return tuple(xp.zeros_like(self.limbs[0]) for _ in range(extra)) + self.limbs

    def __mul__(self, factor: float) -> GridSum:
        """Multiply: exactly by integers up to 2^16; by other numbers the float64 value, rounded to the grid."""
        if float(factor).is_integer() and abs(factor) <= 2.0**16:
            limbs = canonical(self._raised(COARSE), COARSE, fold=False).limbs
            # Zero times a negative number is -0.0, which equals 0.0 but has other bits; adding 0.0 undoes that.
            return canonical(tuple(limb * factor + 0.0 for limb in limbs), COARSE)
        value = self.value() * factor
        accumulator = GridAccumulator(self.shape, 1 if self.bottom == BASE else 2, like=value)
        accumulator.add(value, peak=_peak(namespace(value), value))
        return accumulator.total()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, GridSum) or self.top != other.top or len(self.limbs) != len(other.limbs):
            return False
        return all(np.array_equal(to_host(a), to_host(b)) for a, b in zip(self.limbs, other.limbs, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def to_host(self) -> GridSum:
        """The same sum in host memory."""
        return GridSum(tuple(to_host(limb) for limb in self.limbs), self.top)


def canonical(limbs: tuple[Array, ...], top: int, *, fold: bool = True, own: bool = False) -> GridSum:
    """Carry between limbs until equal totals have equal digits.

    Parameters
    ----------
    limbs : tuple of arrays
    top : int
    fold : bool
        Give up a coarse limb that is not needed.
    own : bool
        The limbs may be overwritten: they may be half of the memory that there is.

    Raises
    ------
    ScaleError
        If the total is not finite or needs more than the coarsest limb holds.
    """
    xp = namespace(limbs[0])
    digits = list(limbs) if own or len(limbs) == 1 else [xp.asarray(limb, copy=True) for limb in limbs]
    for piece in _pieces(digits[0]) if len(digits) > 1 else ():
        for i in range(len(digits) - 1, 0, -1):
            # floor(x + 1/2), not rint: a digit of exactly half a base must always be carried the same way.
            carry = xp.floor(digits[i][piece] * 2.0**-DIGIT_BITS + 0.5)
            digits[i][piece] -= carry * 2.0**DIGIT_BITS
            digits[i - 1][piece] += carry
    peak = _peak(xp, digits[0])
    if not peak < ROOM:
        if top == COARSE or not np.isfinite(peak):
            msg = f"a sum of {peak:.3g} steps of 2^{top}"
            raise ScaleError(msg, f"at most {ROOM:.3g}", "rescale the features, or remove the outlying rows")
        return canonical((xp.zeros_like(digits[0]), *digits), COARSE, own=True)
    if fold and top == COARSE and len(digits) > 1 and peak <= ROOM * 2.0**-DIGIT_BITS:
        folded = digits[0] * 2.0**DIGIT_BITS + digits[1]
        if _peak(xp, folded) < ROOM:
            return GridSum((folded, *digits[2:]), BASE)
    return GridSum(tuple(digits), top)


def _pieces(array: Array) -> Iterator[Any]:
    """Parts of an array along its first axis that a cache holds, so that what is made of them takes no memory."""
    if not array.ndim:
        yield ...
        return
    width = math.prod(array.shape[1:])
    for rows in cached_rows(array.shape[0], width, array):
        yield (rows, ...)


def _peak(xp: Any, array: Array) -> float:
    if not array.size:
        return 0.0
    peaks = [float(xp.max(xp.abs(array[piece]))) for piece in _pieces(array)]
    return float(np.max(peaks))  # unlike max(), it lets NaN through


class GridAccumulator:
    """Adds block products into limbs in place; the mutable builder of a `GridSum`.

    Parameters
    ----------
    shape : tuple of int
    n_limbs : int
        1 keeps steps of 2^-16 (float32 products), 2 adds steps of 2^-52 (float64 products).
    like : array
        Gives the library and device.
    """

    def __init__(self, shape: tuple[int, ...], n_limbs: int, like: Array) -> None:
        self._xp = namespace(like)
        self._device = device_of(like)
        self._limbs = [self._zeros(shape) for _ in range(n_limbs)]
        self._top = BASE
        self._used = 0.0
        self._adds = 0

    def _zeros(self, shape: tuple[int, ...]) -> Array:
        return self._xp.zeros(shape, dtype=self._xp.float64, device=self._device)

    def reserve(self, peak: float) -> None:
        """Make room for one more addition of magnitude up to `peak`, with another limb if need be.

        Callers that write parts of the array from several threads reserve first, then `add_reserved`.
        """
        if not np.isfinite(peak):
            msg = "a block of products that is not finite"
            raise ScaleError(msg, "finite features and targets", "look for NaN, infinite or huge values")
        need = peak * 2.0**-self._top + 1.0
        self._used += need
        self._adds += 1
        if self._used < ROOM and self._adds < MAX_ADDS:
            return
        self._carry(self._top)
        held = _peak(self._xp, self._limbs[0])
        if self._top == BASE and held + need >= ROOM:
            self._limbs.insert(0, self._xp.zeros_like(self._limbs[0]))
            self._carry(COARSE)
            held = _peak(self._xp, self._limbs[0])
            need = peak * 2.0**-COARSE + 1.0
        if held + need >= ROOM:
            msg = f"block products as large as {peak:.3g} sampled variances"
            raise ScaleError(msg, "a total of at most 2^72", "rescale the features, or drop outlying rows")
        self._used, self._adds = held + need, 1

    def _carry(self, top: int) -> None:
        total = canonical(tuple(self._limbs), top, fold=False, own=True)
        # NumPy's arithmetic turns arrays of shape () into scalars, which nothing can be added to in place.
        self._limbs, self._top = [self._xp.asarray(limb) for limb in total.limbs], total.top

    def add_reserved(self, block: Array, where: Any = ...) -> None:
        """Round a block of products to the grid and add it at `where`; room was reserved before.

        Parameters
        ----------
        block : floating array
            In the units of the frame, so that a typical squared feature is near 1. Where one limb is kept it is
            overwritten.
        where : index
            Part of the array that the block belongs to.
        """
        xp = self._xp
        # In place as far as it goes: fresh memory for each step took as long again.
        if len(self._limbs) == 1:
            # Scaling by a power of two and rounding are exact in the block's own type.
            block = xp.asarray(block)
            block *= 2.0**-BASE
            self._limbs[0][where] += in_place(xp.round, block)
            return
        rest = xp.asarray(xp.astype(block, xp.float64, copy=False) * 2.0**-self._top)
        for limb in self._limbs[:-1]:
            step = xp.round(rest)
            limb[where] += step
            rest -= step
            rest *= 2.0**DIGIT_BITS
        self._limbs[-1][where] += in_place(xp.round, rest)

    def add(self, block: Array, *, peak: float, where: Any = ...) -> None:
        """Reserve and add: `peak` bounds the magnitude of the block's entries."""
        self.reserve(peak)
        self.add_reserved(block, where)

    def total(self) -> GridSum:
        """The sum so far, in canonical form. The accumulator must not be used afterwards."""
        return canonical(tuple(self._limbs), self._top, own=True)
