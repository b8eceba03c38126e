"""Exact leave-one-out errors of every alpha, from one more pass over the rows.

Floor 3: imports arrays, errors and solve siblings. Rows stream through `LeaveOneOut`; `Press` is the frozen sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamfit.arrays import Array, to_host
from streamfit.errors import MismatchError, SolveError
from streamfit.solve.spectrum import BLOCK_TARGETS, Spectrum, target_blocks

BLOCK_ROWS = 1024
_GAP = 1e-8
"""Least 1 - leverage that rounding leaves digits of."""


@dataclass(frozen=True)
class Press:
    """Sums of squared leave-one-out errors over some rows; `+` joins those of disjoint rows.

    Parameters
    ----------
    alphas : array of shape (n_alphas,)
        Ascending.
    losses : array of shape (n_alphas, n_targets)
        ``sum_t w_t (y_t - ŷ_t)²``, each row predicted by the fit to all others.
    peak_leverages : array of shape (n_alphas,)
        The largest leverage of a row: near 1, the fit follows that row whatever it says.
    n_rows : int
    weight : float
    all_rows : int
    all_weight : float
        Rows that were fitted, and their weight: what a whole pass must reach.
    sums_trusted : boolean array of shape (n_alphas,)
        Whether rounding of the stored sums is small against the system.
    """

    alphas: np.ndarray
    losses: np.ndarray
    peak_leverages: np.ndarray
    n_rows: int
    weight: float
    all_rows: int
    all_weight: float
    sums_trusted: np.ndarray

    def __add__(self, other: Press) -> Press:
        same = np.array_equal(self.alphas, other.alphas) and self.losses.shape == other.losses.shape
        if not same or (self.all_rows, self.all_weight) != (other.all_rows, other.all_weight):
            msg = "leave-one-out sums of different fits or alphas"
            raise MismatchError(msg, "one spectrum and one grid for all")
        return replace(
            self,
            losses=self.losses + other.losses,
            peak_leverages=np.maximum(self.peak_leverages, other.peak_leverages),
            n_rows=self.n_rows + other.n_rows,
            weight=self.weight + other.weight,
        )

    @property
    def trusted(self) -> np.ndarray:
        """Alphas whose leverages and sums have digits left; others are never the best."""
        return np.asarray(self.sums_trusted & (self.peak_leverages < 1.0 - _GAP))

    @property
    def target_losses(self) -> np.ndarray:
        """Mean squared leave-one-out error per unit of weight, shape (n_alphas, n_targets).

        Raises
        ------
        SolveError
            If the pass was not over exactly the rows that were fitted.
        """
        if self.n_rows != self.all_rows or abs(self.weight - self.all_weight) > 1e-6 * self.all_weight:
            msg = f"leave-one-out sums over {self.n_rows} rows of weight {self.weight:.9g}"
            raise SolveError(msg, f"all {self.all_rows} fitted rows, of weight {self.all_weight:.9g}", "add the others")
        return np.asarray(self.losses / self.weight)

    @property
    def mean_losses(self) -> np.ndarray:
        """The same, summed over targets, shape (n_alphas,)."""
        return np.asarray(self.target_losses.sum(axis=1))

    @property
    def best(self) -> float:
        """The trusted alpha of least leave-one-out error."""
        self._some_trusted()
        return float(self.alphas[np.argmin(np.where(self.trusted, self.mean_losses, np.inf))])

    @property
    def best_per_target(self) -> np.ndarray:
        """The same for each target, shape (n_targets,)."""
        self._some_trusted()
        return np.asarray(self.alphas[np.argmin(np.where(self.trusted[:, None], self.target_losses, np.inf), axis=0)])

    def _some_trusted(self) -> None:
        if not self.trusted.any():
            msg = f"alphas up to {self.alphas[-1]:g}, all so small that rounding decides"
            raise SolveError(msg, "some larger alpha", "raise the grid")

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, summed over targets."""
        return {
            "alphas": self.alphas.tolist(),
            "leave_one_out": self.mean_losses.tolist(),
            "trusted": self.trusted.tolist(),
            "peak_leverages": self.peak_leverages.tolist(),
        }


class LeaveOneOut:
    """Adds up squared leave-one-out errors of rows that were fitted.

    The fit without row t misses it by ``e_t / (1 - h_t)`` exactly, with e_t the residual of the fit to all rows and
    ``h_t = w_t (1/W + (φ_t - mean)'(G + αI)^-1 (φ_t - mean))`` its leverage, 1/W where an intercept is fitted (Allen,
    The relationship between variable selection and data augmentation and a method for prediction, Technometrics 16,
    1974). Alpha keeps its value in the fits to the other rows. Costs ``2 n D (D + n_alphas K)`` operations and, beside
    the spectrum, arrays of shape (1024, D) and (1024, block) alone.

    Parameters
    ----------
    spectrum : Spectrum
        Of the moments of all the rows.
    alphas : array of shape (n_alphas,)
        Nonnegative, unscaled by n.
    block : int
        Targets at a time.
    trusted : boolean array of shape (n_alphas,), optional
        `Spectrum.trusted` of the alphas in ascending order, where it is known: it takes a few factorisations.

    Raises
    ------
    SolveError
        If an alpha is not served by the spectrum.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.moments import Moments
    >>> from streamfit.solve.spectrum import decompose
    >>> from streamfit.targets import Dense
    >>> phi, y = np.zeros((2, 1)), np.array([[0.0], [1.0]])  # the features say nothing: each row predicts the other
    >>> m = Moments.from_rows(phi, y, Frame.identity(1, 1), Dense(1))
    >>> pass_ = LeaveOneOut(decompose(m), np.array([1.0]))
    >>> pass_.add(phi, y)
    >>> pass_.press().mean_losses.tolist()
    [1.0]
    """

    def __init__(
        self,
        spectrum: Spectrum,
        alphas: np.ndarray,
        *,
        block: int = BLOCK_TARGETS,
        trusted: np.ndarray | None = None,
    ) -> None:
        self._spectrum, self._block, self._trusted = spectrum, block, trusted
        self._alphas = np.sort(spectrum.checked(np.atleast_1d(alphas)))
        self._shrink = 1.0 / (spectrum.eigenvalues + self._alphas[:, None])
        self._losses = np.zeros((len(self._alphas), spectrum.n_targets))
        self._peaks = np.zeros(len(self._alphas))
        self._n_rows, self._weight = 0, 0.0

    def add(self, phi: Array, y: Array, weights: Array | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)
        y : array of shape (n_rows, n_targets), or integer (n_rows,) for class ids
        weights : array of shape (n_rows,), optional
            As they were fitted; 1 for every row without it.

        Raises
        ------
        MismatchError
            If shapes do not fit the spectrum, or a class id is out of range.
        """
        phi, y = to_host(phi), to_host(y)
        w = np.ones(len(phi)) if weights is None else to_host(weights).astype(np.float64)
        d, k = len(self._spectrum.vectors), self._spectrum.n_targets
        classes = y.ndim == 1
        if phi.ndim != 2 or phi.shape[1] != d or len(w) != len(phi) or y.shape != (len(phi), k)[: 1 if classes else 2]:
            msg = f"features of shape {phi.shape}, targets of shape {y.shape}, {len(w)} weights"
            raise MismatchError(msg, f"(n_rows, {d}), and (n_rows, {k}) or class ids of shape (n_rows,)")
        if classes and (y.dtype.kind not in "iu" or (y.size and not 0 <= y.min() <= y.max() < k)):
            msg = f"class ids of type {y.dtype}" + (f" from {y.min()} to {y.max()}" if y.size else "")
            raise MismatchError(msg, f"integers in [0, {k})")
        for lo in range(0, len(phi), BLOCK_ROWS):
            rows = slice(lo, lo + BLOCK_ROWS)
            self._add_block(phi[rows], y[rows], w[rows])
        self._n_rows += len(phi)
        self._weight += float(w.sum())

    def _add_block(self, phi: np.ndarray, y: np.ndarray, w: np.ndarray) -> None:
        s = self._spectrum
        scores = (phi.astype(np.float64) - s.sums.mean_x) @ s.vectors
        leverages = (self._shrink @ (scores**2).T + (1.0 / s.sums.weight if s.fit_intercept else 0.0)) * w
        self._peaks = np.maximum(self._peaks, leverages.max(axis=1, initial=0.0))
        # Where nothing is left of 1 - h the alpha is not trusted; its sum only has to stay finite.
        factors = w / np.maximum(1.0 - leverages, _GAP) ** 2
        for targets in target_blocks(s.n_targets, self._block):
            about = self._targets(y, targets) - s.sums.mean_y[targets]
            for a, shrink in enumerate(self._shrink):
                errors = about - (scores * shrink) @ s.projections[:, targets]
                self._losses[a, targets] += factors[a] @ (errors * errors)

    @staticmethod
    def _targets(y: np.ndarray, targets: slice) -> np.ndarray:
        if y.ndim == 2:
            return y[:, targets].astype(np.float64)
        indicators = np.zeros((len(y), targets.stop - targets.start))
        here = np.flatnonzero((y >= targets.start) & (y < targets.stop))
        indicators[here, y[here] - targets.start] = 1.0
        return indicators

    def press(self) -> Press:
        """The sums so far, those of other rows to be added with `+`."""
        sums = self._spectrum.sums
        return Press(
            self._alphas,
            self._losses.copy(),
            self._peaks,
            self._n_rows,
            self._weight,
            sums.n_rows,
            sums.weight,
            self._spectrum.trusted(self._alphas) if self._trusted is None else self._trusted,
        )


@dataclass(frozen=True)
class LeaveOneOutPass:
    """What a pass for leave-one-out errors is made with, as a description that travels; see `LeaveOneOut`.

    Parameters
    ----------
    spectrum : Spectrum
    alphas : array of shape (n_alphas,)
        Ascending.
    trusted : boolean array of shape (n_alphas,)
    """

    spectrum: Spectrum
    alphas: np.ndarray
    trusted: np.ndarray

    @classmethod
    def of(cls, spectrum: Spectrum, alphas: np.ndarray) -> LeaveOneOutPass:
        """The pass for a grid of alphas."""
        grid = np.sort(spectrum.checked(np.atleast_1d(alphas)))
        return cls(spectrum, grid, spectrum.trusted(grid))

    def block(self, phi: Array, y: Array, weights: Array | None = None) -> Press:
        """Errors of some rows; shapes as for `LeaveOneOut.add`."""
        rows = LeaveOneOut(self.spectrum, self.alphas, trusted=self.trusted)
        rows.add(phi, y, weights)
        return rows.press()
