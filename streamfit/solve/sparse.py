"""Lasso, elastic net and nonnegative least squares from moments, with a duality gap as the certificate.

Floor 3: imports moments, centered, certificate, duality, ridge, select, rows, arrays, errors. With R'R = G and R'z = C,
the rows (R, z) have the sums that were stored: public solvers for rows, scikit-learn's and scipy's, run on these few.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import scipy.optimize

from streamfit.arrays import Array
from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import SolveError
from streamfit.factoring import eigvalsh
from streamfit.moments import Moments
from streamfit.solve.certificate import eigenvalue_noise
from streamfit.solve.duality import lasso_gaps
from streamfit.solve.ridge import without_constants
from streamfit.solve.rows import host_rows
from streamfit.solve.select import AlphaPath


class NotConvergedWarning(UserWarning):
    """Weights whose duality gap is still above the tolerance: the gap holds, and tells how far off they may be."""


@dataclass(frozen=True)
class SparseSolution:
    """Weights, many of them zero, and how far their loss may be from the optimum.

    Parameters
    ----------
    weights : array of shape (n_features, n_targets)
    intercept : array of shape (n_targets,)
    l1, l2 : float
        Penalties, as in `elastic_net_path`.
    nonnegative : bool
    losses : array of shape (n_targets,)
        L(B) of each target, penalties included, from the stored sums.
    gaps : array of shape (n_targets,)
        Upper bounds on L(B) - L*, rounding of their own computation included; infinite where nothing is certain. Of
        the objective that the stored sums define.
    """

    weights: np.ndarray
    intercept: np.ndarray
    l1: float
    l2: float
    nonnegative: bool
    losses: np.ndarray
    gaps: np.ndarray

    @property
    def n_nonzero(self) -> np.ndarray:
        """Number of weights that are not zero, shape (n_targets,)."""
        return np.asarray(np.count_nonzero(self.weights, axis=0))

    def predict(self, phi: Array) -> np.ndarray:
        """Predictions `φ B + b`, shape (n_rows, n_targets), from features of shape (n_rows, n_features)."""
        return np.asarray(host_rows(phi, len(self.weights)) @ self.weights + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the weights; a gap None where it is infinite."""
        return {
            "l1": self.l1,
            "l2": self.l2,
            "nonnegative": self.nonnegative,
            "n_nonzero": self.n_nonzero.tolist(),
            "losses": self.losses.tolist(),
            "gaps": [float(gap) if np.isfinite(gap) else None for gap in self.gaps],
        }

    def lines(self) -> list[str]:
        """Loss, certificate and size as text, a line a fact."""
        loss, gap = float(self.losses.sum()), float(self.gaps.sum())
        share = gap / loss if loss > 0 else 0.0
        return [
            f"loss               {loss:.10g}",
            f"loss - optimum     <= {gap:.2e}  ({share:.1e} of the loss; of the stored sums)",
            f"nonzero weights    {int(self.n_nonzero.sum())} of {self.weights.size}",
        ]


def elastic_net_path(
    moments: Statistic | Centered,
    l1s: Sequence[float] | np.ndarray,
    l2: float = 0.0,
    *,
    nonnegative: bool = False,
    fit_intercept: bool = True,
    tolerance: float = 1e-10,
    max_iter: int = 10_000,
) -> list[SparseSolution]:
    """Solve the elastic net for a grid of penalties, each from the solution of the next larger one.

    Minimises, for each target alone, ``sum_t w_t (b'φ_t + b0 - y_t)² + l1 sum_j |b_j| + l2 sum_j b_j²``, where all b_j
    are >= 0 if so asked: l2 is the alpha of `solve`, neither penalty is divided by the number of rows, and the
    intercept is free. The lasso is l2 = 0; nonnegative least squares is l1 = 0. With W the sum of weights (the number
    of rows without), scikit-learn's ElasticNet has the same optimum at ``alpha = (l1 / 2 + l2) / W`` and ``l1_ratio =
    l1 / (l1 + 2 l2)``, its Lasso at ``alpha = l1 / (2 W)``.

    Coordinate descent (Friedman, Hastie and Tibshirani, J. Stat. Software 33, 2010), or the active-set method of Lawson
    and Hanson (Solving least squares problems, 1974, 23) where l1 is zero, on the rows of a pivoted Cholesky factor of
    the Gram matrix. Certified by weak duality, see `SparseSolution.gaps`.

    Parameters
    ----------
    moments : Moments or Centered
    l1s : array of shape (n_penalties,)
        Nonnegative; zero only with `nonnegative`. In any order.
    l2 : float
        Nonnegative.
    nonnegative : bool
    fit_intercept : bool
    tolerance : float
        Duality gap, relative to the sum of squares that least squares would explain, at which descent stops.
    max_iter : int
        Sweeps over the features.

    Returns
    -------
    list of SparseSolution
        One a penalty, in the order given.

    Raises
    ------
    SolveError
        If a penalty is negative or not finite, an l1 is zero without `nonnegative`, or the active-set method does not
        end.

    Warns
    -----
    NotConvergedWarning
        If descent stopped at `max_iter`.

    Notes
    -----
    Memory for about six D x D matrices besides the moments. Where features are dependent the optimum need not be
    unique; the loss is. A gap for l1 = 0 needs a Gram matrix (with l2 added) that is certainly not singular.

    Examples
    --------
    >>> from streamfit.frame import Frame
    >>> from streamfit.targets import Dense
    >>> x = np.array([[1.0, 1], [-1, 1], [1, -1], [-1, -1]])
    >>> m = Moments.from_rows(x, x @ [[3.0], [-1]], Frame.identity(2, 1), Dense(1))
    >>> [s.weights[:, 0].round(6).tolist() for s in elastic_net_path(m, [0.8, 16.0])]
    [[2.9, -0.9], [1.0, 0.0]]
    >>> elastic_net_path(m, [0.0], nonnegative=True)[0].weights.round(6).tolist()
    [[3.0], [0.0]]
    """
    grid = np.asarray(l1s, dtype=np.float64)
    _check(grid, l2, nonnegative)
    c = _read(moments, fit_intercept)
    varying = np.diag(c.gram) > 0
    system, cross = c.gram[np.ix_(varying, varying)], c.cross[varying]
    # The second penalty is as good as rows sqrt(l2) I with targets zero: what is left to solve is a lasso.
    system[np.diag_indices(len(system))] += l2
    rows, z, units = _rows(system, cross)
    natural = rows * units
    eigenvalues = eigvalsh(system) if len(system) else np.zeros(1)
    strong = max(float(eigenvalues[0]) - eigenvalue_noise(len(system), float(eigenvalues[-1])), 0.0)
    largest = largest_l1(c, nonnegative=nonnegative, fit_intercept=fit_intercept)
    weights = np.zeros(cross.shape)
    found: dict[float, SparseSolution] = {}
    unfinished = []
    for l1 in np.unique(grid)[::-1]:
        weights = weights.copy()
        for k in range(cross.shape[1]):
            if l1 >= largest[k]:
                weights[:, k] = 0.0
            elif l1 == 0:
                weights[:, k] = _active_set(rows, z[:, k]) / units
            else:
                weights[:, k], ended = _descend(
                    natural, z[:, k], l1, weights[:, k], nonnegative=nonnegative, tol=tolerance, max_iter=max_iter
                )
                unfinished += [] if ended else [f"l1 {l1:g} of target {k}"]
        losses, gaps = lasso_gaps(system, cross, c.ss_y, weights, float(l1), nonnegative=nonnegative, strong=strong)
        full = np.zeros(c.cross.shape)
        full[varying] = weights
        intercept = c.mean_y - c.mean_x @ full
        found[float(l1)] = SparseSolution(full, intercept, float(l1), float(l2), nonnegative, losses, gaps)
    if unfinished:
        warnings.warn(
            f"coordinate descent stopped after {max_iter} sweeps at {unfinished[0]} ({len(unfinished)} in all): "
            "the gap tells how far the loss may be from the optimum; raise max_iter, l1 or l2",
            NotConvergedWarning,
            stacklevel=2,
        )
    return [found[float(l1)] for l1 in grid]


def elastic_net(moments: Statistic | Centered, l1: float, l2: float = 0.0, **options: Any) -> SparseSolution:
    """Solve the elastic net for one pair of penalties; see `elastic_net_path`, which takes the same options."""
    return elastic_net_path(moments, [l1], l2, **options)[0]


def nonnegative_least_squares(
    moments: Statistic | Centered, alpha: float = 0.0, *, fit_intercept: bool = True
) -> SparseSolution:
    """Minimise ``sum_t w_t (b'φ_t + b0 - y_t)² + alpha ||b||²`` over b >= 0, each target alone: `elastic_net_path`."""
    return elastic_net_path(moments, [0.0], alpha, nonnegative=True, fit_intercept=fit_intercept)[0]


def largest_l1(moments: Statistic | Centered, *, nonnegative: bool = False, fit_intercept: bool = True) -> np.ndarray:
    """The l1 from which on all weights of a target are zero, shape (n_targets,): where a grid starts."""
    cross = _read(moments, fit_intercept).cross
    return np.asarray(2.0 * np.max(cross if nonnegative else np.abs(cross), axis=0, initial=0.0))


def cross_validate_l1(
    folds: Mapping[int, Moments],
    l1s: Sequence[float] | np.ndarray,
    l2: float = 0.0,
    *,
    nonnegative: bool = False,
    fit_intercept: bool = True,
    tolerance: float = 1e-8,
) -> AlphaPath:
    """Evaluate each l1 on each fold with weights fitted to the other folds.

    Parameters
    ----------
    folds : mapping of int to Moments
        At least two, with rows in each.
    l1s : array of shape (n_penalties,)
    l2 : float
    nonnegative, fit_intercept, tolerance
        As in `elastic_net_path`.

    Returns
    -------
    AlphaPath
        With l1 for alpha, ascending, and losses of each target.

    Raises
    ------
    SolveError
        If there are fewer than two folds, or as `elastic_net_path` does.

    Warns
    -----
    NotConvergedWarning
        As `elastic_net_path` does.
    """
    grid = np.unique(np.asarray(l1s, dtype=np.float64))
    filled = {k: m for k, m in sorted(folds.items()) if m.n_rows > 0}
    if len(filled) < 2:
        msg = f"{len(filled)} fold(s) with rows"
        raise SolveError(msg, "at least 2", "add more shards, or give one l1 instead of a grid")
    losses, baseline, held_weights = [], [], []
    for held, moments in filled.items():
        others = [m for k, m in filled.items() if k != held]
        train = _read(functools.reduce(operator.add, others), fit_intercept)
        path = elastic_net_path(
            train, grid, l2, nonnegative=nonnegative, fit_intercept=fit_intercept, tolerance=tolerance
        )
        test = moments.centered().about(train.mean_x, train.mean_y)
        fits = [np.sum(s.weights * (test.gram @ s.weights - 2.0 * test.cross), axis=0) for s in path]
        losses.append(np.maximum(test.ss_y + np.array(fits), 0.0) / test.weight)
        baseline.append(float(test.ss_y.sum()) / test.weight)
        held_weights.append(test.weight)
    each = np.array(losses)
    trusted = np.ones(len(grid), dtype=bool)
    return AlphaPath(grid, each.sum(axis=2), np.array(baseline), np.array(held_weights), trusted, each)


def _check(l1s: np.ndarray, l2: float, nonnegative: bool) -> None:
    if l1s.ndim != 1 or not l1s.size or not (np.isfinite(l1s) & (l1s >= 0)).all():
        msg = f"l1 penalties {l1s.tolist()}"
        raise SolveError(msg, "one or more finite numbers >= 0")
    if not (l2 >= 0 and np.isfinite(l2)):
        msg = f"l2 penalty {l2}"
        raise SolveError(msg, "a finite number >= 0")
    if not nonnegative and not l1s.all():
        msg = "an l1 penalty of 0 on weights of any sign"
        raise SolveError(msg, "a positive number", "that is ridge regression: use `solve` with alpha = l2")


def _read(moments: Statistic | Centered, fit_intercept: bool) -> Centered:
    """Sums as they are solved: about zero where no intercept is fitted."""
    c = as_centered(moments)
    return without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))


def _rows(system: np.ndarray, cross: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Few rows with the given sums: R of shape (rank, n_features) with columns of length one, z, and their lengths."""
    n, units = len(system), np.sqrt(np.diag(system))
    if not n:
        return np.empty((0, 0)), np.empty((0, cross.shape[1])), units
    # Pivots bring the independent features first, and scaling makes the rank independent of units.
    lower, pivots, rank, _ = scipy.linalg.lapack.dpstrf(
        system / units / units[:, None], lower=1, tol=eigenvalue_noise(n, 1.0), overwrite_a=1
    )
    pivots -= 1
    lower = np.tril(lower[:, :rank])
    rows = np.zeros((rank, n))
    rows[:, pivots] = lower.T
    leading = pivots[:rank]
    z = scipy.linalg.solve_triangular(lower[:rank], cross[leading] / units[leading, None], lower=True)
    return rows, z, units


def _descend(
    rows: np.ndarray, z: np.ndarray, l1: float, start: np.ndarray, *, nonnegative: bool, tol: float, max_iter: int
) -> tuple[np.ndarray, bool]:
    """Lasso on these rows by coordinate descent, and whether it came to its end."""
    from sklearn.exceptions import ConvergenceWarning  # takes long, and commands start without it
    from sklearn.linear_model import lasso_path

    with warnings.catch_warnings():
        # Told once for all targets and penalties, with the gap.
        warnings.simplefilter("ignore", ConvergenceWarning)
        _, path, _, sweeps = lasso_path(
            rows,
            z,
            alphas=[l1 / (2.0 * len(rows))],
            coef_init=start.copy(),
            precompute=False,
            positive=nonnegative,
            tol=tol,
            max_iter=max_iter,
            return_n_iter=True,
        )
    return path[:, 0], sweeps[0] < max_iter


def _active_set(rows: np.ndarray, z: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(scipy.optimize.nnls(rows, z)[0])
    except RuntimeError as error:
        msg = f"an active-set method that did not end within {3 * rows.shape[1]} steps"
        raise SolveError(msg, "features that are less dependent", "raise l2, or drop some") from error
