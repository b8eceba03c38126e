"""The inverse of a ridge system: its Cholesky factor, and downdates of it as features leave.

Floor 3: imports centered, ridge, errors. What `posterior` and `prune` share; removing a feature costs O(D²).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from streamfit.centered import Centered
from streamfit.errors import SolveError
from streamfit.solve.ridge import RCOND_FLOOR

TOLERANCE = 1e-9
"""Error of a removal's cost, relative to the loss after it, above which the inverse is computed anew."""
_LEAST_LOSS = 1e-4
"""Least loss that errors are relative to, as a share of the targets' sum of squares."""
_SHARE_PER_INVERSE = 0.25
"""Share of the features after whose removal the inverse is computed anew in any case: O(D³) in all."""
_TARGETS_AT_ONCE = 4096


def inverse_factor(gram: np.ndarray, alpha: float, *, least_rcond: float = RCOND_FLOOR) -> np.ndarray:
    """Lower triangular T with (G + alpha I)^-1 = T'T, by Cholesky of the system scaled to a unit diagonal.

    Parameters
    ----------
    gram : array of shape (n_features, n_features)
    alpha : float
    least_rcond : float
        Reciprocal condition, of the scaled system, that is still trusted.

    Raises
    ------
    SolveError
        If the system is singular, or its reciprocal condition below that.
    """
    system = gram.copy()
    system[np.diag_indices(len(gram))] += alpha
    units = np.sqrt(np.maximum(np.diag(system), 0.0))
    if not (units > 0).all():
        _refuse(alpha, f"feature {int(np.argmin(units))} does not vary")
    system /= units
    system /= units[:, None]
    norm = float(np.abs(system).sum(axis=0).max())
    lower, info = scipy.linalg.lapack.dpotrf(system.T, lower=1, clean=1, overwrite_a=1)
    if info > 0:
        _refuse(alpha, f"feature {info - 1} is a combination of features before it, but for rounding")
    rcond, _ = scipy.linalg.lapack.dpocon(lower, norm, uplo="L")
    if not rcond >= least_rcond:
        worst = int(np.argmin(np.diag(lower)))
        _refuse(alpha, f"reciprocal condition {rcond:.1e}, feature {worst} nearly a combination of features before it")
    triangle, _ = scipy.linalg.lapack.dtrtri(lower, lower=1, overwrite_c=1)
    return np.asarray(triangle / units)


def _refuse(alpha: float, why: str) -> None:
    msg = f"a singular system with alpha {alpha:g}: {why}"
    raise SolveError(msg, "independent features, or a larger alpha", "raise alpha, or drop that feature")


@dataclass(frozen=True)
class Removal:
    """What leaves, what it costs, and how P and B change: by -W W' and -W V.

    Parameters
    ----------
    at : integer array of shape (n_leaving,)
        Rows of P.
    w : array of shape (n_rows, n_leaving)
        W W' = P_:J (P_JJ)^-1 P_J:
    v : array of shape (n_leaving, n_columns)
        W V = P_:J (P_JJ)^-1 B_J
    increase : float
        Of the loss: ||V||².
    error : float
        By how much the increase changed when its columns were refined; infinite where P_JJ is no longer definite.
    """

    at: np.ndarray
    w: np.ndarray
    v: np.ndarray
    increase: float
    error: float


class DowndatedInverse:
    """Inverse P and weights B of the features left, in units in which the system's diagonal is one.

    Rows of features that left are zero until the next inversion drops them.

    Parameters
    ----------
    c : Centered
    alpha : float
    test : Centered, optional
        Held-out sums, about the same means.

    Raises
    ------
    SolveError
        If the system is singular or nearly so.
    """

    def __init__(self, c: Centered, alpha: float, test: Centered | None) -> None:
        factor = inverse_factor(c.gram, alpha)
        self._units = np.sqrt(np.diag(c.gram) + alpha)
        self._system = c.gram / self._units
        self._system[np.diag_indices(len(factor))] += alpha / self._units
        self._system /= self._units[:, None]
        cross, held_cross = _compressed(c.cross, None if test is None else test.cross)
        self._cross = cross / self._units[:, None]
        self._ss_y = float(c.ss_y.sum())
        self._test = test
        if test is not None and held_cross is not None:
            self._held_gram = test.gram / self._units / self._units[:, None]
            self._held_cross = held_cross / self._units[:, None]
        self._features = np.arange(len(factor))
        self._at = np.arange(len(factor))
        self._left = np.ones(len(factor), dtype=bool)
        self.n_inverses, self.drift, self.loss = 0, 0.0, 0.0
        self._take(factor * self._units)

    def invert(self) -> None:
        """Compute inverse, weights and losses anew, of the features left."""
        left = np.flatnonzero(self._left)
        self._features, self._cross = self._features[left], self._cross[left]
        self._system = self._system[np.ix_(left, left)]
        if self._test is not None:
            self._held_gram, self._held_cross = self._held_gram[np.ix_(left, left)], self._held_cross[left]
        self._at[self._features] = np.arange(len(left))
        self._left = np.ones(len(left), dtype=bool)
        # Better conditioned than the whole system was, and that was accepted.
        self._take(inverse_factor(self._system, 0.0, least_rcond=0.0))

    def _take(self, factor: np.ndarray) -> None:
        self._inverse = (factor.T @ factor).T  # column by column, as BLAS updates it in place
        self._weights = factor.T @ (factor @ self._cross)
        loss = self._ss_y + float(np.vdot(self._weights, self._system @ self._weights - 2.0 * self._cross))
        if self.n_inverses:
            self.drift = max(self.drift, abs(loss - self.loss) / self._scale(loss))
        # A removal does not lower the loss; rounding may seem to.
        self.loss = max(loss, self.loss, 0.0)
        if self._test is not None:
            toward = self._held_gram @ self._weights
            self._held_square = float(np.vdot(self._weights, toward - 2.0 * self._held_cross))
            self._held_gradient = toward - self._held_cross
        self.n_inverses += 1
        self._n_since, self._allowed = 0, 0.0

    @property
    def held_out(self) -> float:
        """Held-out mean squared error of the weights."""
        if self._test is None:
            return np.nan
        return max(float(self._test.ss_y.sum()) + self._held_square, 0.0) / self._test.weight

    def _scale(self, loss: float) -> float:
        """What errors of losses are relative to: where the fit is nearly perfect, a share of what there is to fit."""
        return max(loss, _LEAST_LOSS * self._ss_y, float(np.finfo(np.float64).tiny))

    def costs(self, groups: Sequence[np.ndarray]) -> np.ndarray:
        """By how much the loss rises when each of the groups leaves alone."""
        found = np.empty(len(groups))
        sizes = np.array([len(g) for g in groups])
        for size in np.unique(sizes):
            which = np.flatnonzero(sizes == size)
            at = self._at[np.stack([groups[int(i)] for i in which])]
            if size == 1:
                squares = np.einsum("dk,dk->d", self._weights, self._weights)
                found[which] = squares[at[:, 0]] / np.diag(self._inverse)[at[:, 0]]
                continue
            blocks, rows = self._inverse[at[:, :, None], at[:, None, :]], self._weights[at]
            solved = np.linalg.solve(blocks, rows @ rows.transpose(0, 2, 1))
            found[which] = np.trace(solved, axis1=1, axis2=2)
        return np.maximum(found, 0.0)

    def price(self, features: np.ndarray) -> Removal:
        """The removal of features together, from columns of the inverse after one step of iterative refinement."""
        at = self._at[features]
        columns = self._inverse[:, at]
        excess = self._system @ columns
        excess[at, np.arange(len(at))] -= 1.0
        columns = columns - self._inverse @ excess
        try:
            before = _whitened(self._inverse[np.ix_(at, at)], self._weights[at])
            w, v = _whitened(columns[at], columns.T).T, _whitened(columns[at], columns.T @ self._cross)
        except np.linalg.LinAlgError:
            if self._n_since:
                return Removal(at, columns, columns, 0.0, np.inf)
            msg = f"features {self._features[at].tolist()}, not told apart from others but by rounding"
            raise SolveError(msg, "independent features, or a larger alpha", "raise alpha, or drop them") from None
        increase = float(np.vdot(v, v))
        return Removal(at, w, v, increase, abs(increase - float(np.vdot(before, before))))

    def stale(self, removal: Removal) -> bool:
        """Whether to invert before this removal: its cost has become uncertain, or many features have left."""
        error = removal.error / self._scale(self.loss + removal.increase)
        if self._n_since == 0:
            # An ill-conditioned system is no more certain than this, however often it is inverted.
            self._allowed = max(TOLERANCE, 10.0 * error)
            return False
        return error > self._allowed or self._n_since > _SHARE_PER_INVERSE * len(self._left)

    def remove(self, removal: Removal) -> None:
        """Downdate inverse, weights and losses."""
        at, w, v = removal.at, removal.w, removal.v
        if self._test is not None:
            toward = self._held_gram @ w
            change = np.vdot(v @ v.T, w.T @ toward) - 2.0 * np.vdot(w.T @ self._held_gradient, v)
            self._held_square += float(change)
            self._held_gradient -= toward @ v
        self._inverse = scipy.linalg.blas.dgemm(-1.0, w, w, 1.0, self._inverse, trans_b=1, overwrite_c=1)
        self._weights -= w @ v
        self._inverse[at, :] = self._inverse[:, at] = self._weights[at] = 0.0
        self._left[at] = False
        self.loss += removal.increase
        self._n_since += len(at)


def _whitened(corner: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """L^-1 rows, of the Cholesky factor L of P_JJ."""
    lower = scipy.linalg.cholesky(0.5 * (corner + corner.T), lower=True)
    return np.asarray(scipy.linalg.solve_triangular(lower, rows, lower=True))


def _compressed(cross: np.ndarray, held_cross: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Cross moments in a basis of the targets' space that they span: no norm or product of theirs changes."""
    both = cross if held_cross is None else np.vstack([cross, held_cross])
    d, (n, k) = len(cross), both.shape
    if k > n:
        triangle = np.empty((0, n))
        step = max(n, _TARGETS_AT_ONCE)
        for lo in range(0, k, step):
            triangle = np.asarray(np.linalg.qr(np.vstack([triangle, both[:, lo : lo + step].T]), mode="r"))
        both = triangle.T
    return both[:d], None if held_cross is None else both[d:]
