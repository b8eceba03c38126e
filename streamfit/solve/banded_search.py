"""Searching log alphas of blocks for the best criterion, within bounds that rounding of the stored sums allows.

Floor 3: imports centered, errors and solve siblings.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable

import numpy as np
import scipy.optimize

from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.solve.banded_criteria import BandedCriterion
from streamfit.solve.bands import Bands
from streamfit.solve.ridge import noise_share

_STEPS_A_DECADE = 2
"""Of the grid of single alphas."""
_SCOUTS = 7
"""Alphas that are tried for one block at a time, the others held."""
_ROUNDS = 5
"""Searches that a better scout may set off."""
_SAME = 1e-12
"""Relative difference of a criterion that rounding may have made."""


class Search:
    """The best point so far of a criterion, over log alphas within bounds."""

    def __init__(self, problem: BandedCriterion, lower: np.ndarray, upper: np.ndarray, scale: float) -> None:
        self._problem, self._lower, self._upper, self._scale = problem, lower, upper, scale
        self.best, self.value, self._gradient = lower, np.inf, np.zeros_like(lower)
        self.history: list[float] = []

    def run(self, plain: np.ndarray, units: np.ndarray, max_iterations: int) -> None:
        """Search from the single alpha, from multiples of the units, and from scouts for as long as they find more."""
        self._descend(plain, max_iterations)
        reach = np.arange(float(np.min(self._lower - units)), float(np.max(self._upper - units)), np.log(10.0))
        starts = [np.clip(units + step, self._lower, self._upper) for step in reach]
        self._descend(min(starts, key=lambda start: self(start)[0]), max_iterations)
        for _ in range(_ROUNDS):
            if not self._scout():
                break
            self._descend(self.best, max_iterations)
        for g in range(len(units)):
            # What rounding cannot tell apart: a block that adds nothing is to end where that can be seen.
            end = self._with(g, self._upper[g])
            value, gradient = self(end)
            if value <= self.value + self._rounding:
                self.best, self.value, self._gradient = end, value, gradient

    @property
    def slope(self) -> float:
        """Largest derivative that does not lead out of bounds."""
        ends, inward = self.ends, np.abs(self._gradient)
        out = [
            (e == "upper" and s <= 0) or (e == "lower" and s >= 0) for e, s in zip(ends, self._gradient, strict=True)
        ]
        return float(np.where(out, 0.0, inward).max())

    @property
    def ends(self) -> list[str]:
        """At which bound each alpha is."""
        near = 1e-9
        return [
            "upper" if x >= hi - near else "lower" if x <= lo + near else ""
            for x, lo, hi in zip(self.best, self._lower, self._upper, strict=True)
        ]

    @property
    def _rounding(self) -> float:
        return _SAME * max(abs(self.value), 1.0)

    def __call__(self, log_alphas: np.ndarray) -> tuple[float, np.ndarray]:
        raw, slopes = self._problem(log_alphas)
        value, gradient = raw / self._scale, slopes / self._scale
        if value < self.value:
            self.best, self.value, self._gradient = log_alphas.copy(), value, gradient
        self.history.append(self.value)
        return value, gradient

    def _with(self, g: int, log_alpha: float) -> np.ndarray:
        moved = self.best.copy()
        moved[g] = log_alpha
        return moved

    def _descend(self, start: np.ndarray, max_iterations: int) -> None:
        scipy.optimize.minimize(
            self,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(self._lower, self._upper),
            options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": max_iterations},
        )

    def _scout(self) -> bool:
        """Try alphas across the range for one block at a time; whether one is better."""
        before = self.value - self._rounding
        for g in range(len(self.best)):
            for log_alpha in np.linspace(self._upper[g], self._lower[g], _SCOUTS):
                self(self._with(g, log_alpha))
        return self.value < before


def _trusted(bands: Bands, systems: list[Centered], alphas: np.ndarray) -> bool:
    """Whether rounding of the stored sums is small against all systems."""

    def share(c: Centered) -> float:
        scaled, _, alpha = bands.scaled(c, alphas)
        return noise_share(scaled, alpha)

    return all(share(c) <= 1.0 for c in systems)


def _first(trusted: Callable[[int], bool], n: int) -> int:
    """The first of n that is trusted, when all after it are too; n where none is."""
    return bisect.bisect_left(range(n), True, key=trusted)


def best_single(
    problem: BandedCriterion, bands: Bands, systems: list[Centered], low: float, high: float
) -> tuple[float, float]:
    """The single alpha of least criterion: on a grid, and then between its neighbours."""
    ones = np.ones(len(bands.names))
    grid = np.geomspace(low, high, 2 + int(_STEPS_A_DECADE * np.log10(high / low)))
    first = _first(lambda i: _trusted(bands, systems, grid[i] * ones), len(grid))
    if first == len(grid):
        msg = f"alphas from {low:g} to {high:g}, all so small that rounding of the stored sums decides"
        raise SolveError(msg, "some larger alpha", "raise the bounds, or use precision float64")
    points = np.log(grid[first:])
    values = [problem(x * ones)[0] for x in points]
    best = int(np.argmin(values))
    near = points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)]
    polished = scipy.optimize.minimize_scalar(
        lambda x: problem(x * ones)[0], bounds=near, method="bounded", options={"xatol": 1e-4}
    )
    if polished.fun < values[best]:
        return float(np.exp(polished.x)), float(polished.fun)
    return float(np.exp(points[best])), float(values[best])


def raised(bands: Bands, systems: list[Centered], lower: np.ndarray, alpha: float) -> np.ndarray:
    """Lower ends times the least common factor that rounding allows, none above the single alpha."""
    steps = np.arange(0.0, np.log10(alpha / lower.min()) + 0.5, 0.5)
    first = _first(lambda i: _trusted(bands, systems, np.minimum(lower * 10.0 ** steps[i], alpha)), len(steps))
    return np.asarray(np.minimum(lower * 10.0 ** steps[min(first, len(steps) - 1)], alpha))
