"""Stacking: the weighted mean of the sources' own models that predicts held-out rows best. Floor 3.

Convex, so that the result carries a proof: a Frank-Wolfe gap bounds its distance to the optimum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize

from streamfit.centered import Statistic
from streamfit.errors import SolveError
from streamfit.solve.sources import Sources

_STACK_GAP = 1e-9
_ROUNDING = 2.0**-46
"""Frank-Wolfe gap, relative to the loss of the best single model, up to which a stack is accepted."""


@dataclass(frozen=True)
class Stack:
    """Weights of the sources' own models of least held-out loss, and a proof of optimality.

    Parameters
    ----------
    shares : dict of str to float
        Weight v_s >= 0 of the model fitted to source s alone. Sums to 1.
    losses : dict of str to float
        Held-out mean squared error per unit of weight, summed over targets, of each model alone.
    loss : float
        The same of the weighted mean of the models.
    gap : float
        Frank-Wolfe gap. The problem is convex, so the loss is above the optimum by no more (rounding of the stored
        sums aside).
    weights : float64 array of shape (n_features, n_targets)
        Of the weighted mean of the models, which is linear too.
    intercept : float64 array of shape (n_targets,)
    """

    shares: dict[str, float]
    losses: dict[str, float]
    loss: float
    gap: float
    weights: np.ndarray
    intercept: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the model."""
        return {"shares": self.shares, "losses": self.losses, "loss": self.loss, "gap": self.gap}


def stack(parts: Mapping[str, Statistic], target: Statistic, alpha: float, *, fit_intercept: bool = True) -> Stack:
    """Weigh the sources' own models so that their weighted mean has the least held-out loss.

    Model s minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over the rows of source s alone. With f_s its
    predictions, minimises ``mean_t ||sum_s v_s f_s(φ_t) - y_t||²`` over v >= 0 with ``sum_s v_s = 1``: a convex
    quadratic v'Qv, Q the products of the models' errors on the target (Breiman, Stacked regressions, Machine
    Learning 24, 1996). It is solved as nonnegative least squares and proved by its Frank-Wolfe gap (Jaggi,
    Revisiting Frank-Wolfe, ICML 2013).

    Parameters
    ----------
    parts : mapping of str to Moments
        Training sums of at least two sources.
    target : Statistic
        Held-out sums, of a fold that is not in `parts`.
    alpha : float
        Positive.
    fit_intercept : bool

    Raises
    ------
    SolveError
        If alpha is not positive, there are fewer than two sources, a source or the target has no weight, numbers of
        features or targets differ, or the gap is above 1e-9 of the best single model's loss and what rounding
        explains.

    Warns
    -----
    IllConditionedWarning
        If rounding of the stored sums would decide one of the models.
    """
    sources = Sources.of(parts, target, alpha, fit_intercept)
    for corner, name in zip(np.eye(len(sources.names)), sources.names, strict=True):
        sources.trusted_loss(corner, f"the fit to {name!r} alone")
    found = stack_of(sources)
    best, worst = min(found.losses.values()), max(found.losses.values())
    # Products of a wild model's errors with the others' are rounded in its own scale.
    limit = _STACK_GAP * best + sources.rounding + _ROUNDING * (best * worst) ** 0.5
    if not found.gap <= limit:
        msg = f"a stack with duality gap {found.gap:.3g}"
        raise SolveError(msg, f"at most {limit:.3g}", "raise alpha, or leave out sources that are nearly equal")
    return found


def stack_of(sources: Sources) -> Stack:
    """The stack, its gap not yet judged."""
    target, n = sources.target, len(sources.names)
    models = [sources.fit(corner) for corner in np.eye(n)]
    misses = np.array([sources.miss(c, b) for c, b in models])
    products = misses @ misses.T
    for s, (_, b) in enumerate(models):
        toward = target.gram @ b - target.cross
        for r in range(s + 1):
            # <B_r, G B_s> - <B_r, C> - <B_s, C> + ss_y
            rest = np.vdot(models[r][1], toward) - np.vdot(b, target.cross) + target.ss_y.sum()
            products[s, r] = products[r, s] = products[s, r] + rest / target.weight
    # Of t·v with v on the simplex, t² v'Qv + (t - 1)² is least over t at v'Qv / (1 + v'Qv), which grows with v'Qv: so
    # the constraint can be a row of least squares. Columns have unit length, lest a wild model drown the others.
    units = np.sqrt(np.maximum(np.diag(products), sources.rounding))
    eigenvalues, vectors = np.linalg.eigh(products / np.outer(units, units))
    rows = np.vstack([np.sqrt(np.maximum(eigenvalues, 0.0))[:, None] * vectors.T, units.min() / units])
    scaled, _ = scipy.optimize.nnls(rows, np.eye(n + 1)[n])
    shares = scaled / units
    shares /= shares.sum()
    gradient = 2.0 * products @ shares
    return Stack(
        shares=dict(zip(sources.names, shares.tolist(), strict=True)),
        losses=dict(zip(sources.names, np.maximum(np.diag(products), 0.0).tolist(), strict=True)),
        loss=max(float(shares @ products @ shares), 0.0),
        gap=max(float(gradient @ shares - gradient.min()), 0.0),
        weights=sum((v * b for v, (_, b) in zip(shares, models, strict=True)), np.zeros_like(target.cross)),
        intercept=sum(
            (v * (c.mean_y - c.mean_x @ b) for v, (c, b) in zip(shares, models, strict=True)),
            np.zeros_like(target.mean_y),
        ),
    )
