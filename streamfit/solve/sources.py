"""Several sources of rows and a held-out target, centred once, so that mixing them costs O(S D²). Floor 3."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from streamfit.centered import Centered, Statistic
from streamfit.errors import SolveError
from streamfit.solve.ridge import IllConditionedWarning, noise_share, weights_for, without_constants

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Sources:
    """Sources and target, centred once; about zero where no intercept is fitted."""

    names: tuple[str, ...]
    parts: tuple[Centered, ...]
    target: Centered
    alpha: float
    fit_intercept: bool

    @classmethod
    def of(cls, parts: Mapping[str, Statistic], target: Statistic, alpha: float, fit_intercept: bool) -> Sources:
        if not (alpha > 0 and np.isfinite(alpha)):
            msg = f"alpha {alpha} for a mixture of sources"
            raise SolveError(msg, "a positive finite number")
        if len(parts) < 2:
            msg = f"{len(parts)} source(s): {', '.join(parts) or 'none'}"
            raise SolveError(msg, "at least 2", "label the shards of each source, or give more of them")
        shape = target.frame.n_features, target.frame.n_targets
        for name, m in parts.items():
            if (got := (m.frame.n_features, m.frame.n_targets)) != shape:
                msg = f"source {name!r} with {got[0]} features and {got[1]} targets"
                raise SolveError(msg, f"{shape[0]} and {shape[1]}, as held out", "count all with the same features")
        empty = [name for name, m in parts.items() if not m.total_weight > 0]
        if empty:
            msg = f"sources without weight: {', '.join(empty)}"
            raise SolveError(msg, "rows of positive weight in each", "leave them out")
        if not target.total_weight > 0:
            msg = f"held-out sums of {target.n_rows} rows without weight"
            raise SolveError(msg, "rows of positive weight", "hold out more shards")

        def read(m: Statistic) -> Centered:
            c = m.centered()
            return c if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))

        # A source must not pass on what rounding left of features that are constant in it: they vary in the mixture.
        clean = without_constants if fit_intercept else (lambda c: c)
        return cls(tuple(parts), tuple(clean(read(m)) for m in parts.values()), read(target), alpha, fit_intercept)

    @property
    def rounding(self) -> float:
        """What rounding may do to a held-out loss, roughly: no less tells two losses apart."""
        second = self.target.ss_y.sum() / self.target.weight + self.target.mean_y @ self.target.mean_y
        return float(1e3 * _EPS * second) + float(np.finfo(np.float64).tiny)

    def mix(self, factors: np.ndarray) -> Centered:
        """The sums, each times its factor, about their common means (the parallel axis theorem)."""
        weights = factors * [part.weight for part in self.parts]
        total = float(weights.sum())
        means_x, means_y = np.array([p.mean_x for p in self.parts]), np.array([p.mean_y for p in self.parts])
        mean_x, mean_y = weights @ means_x / total, weights @ means_y / total
        dx, dy = means_x - mean_x, means_y - mean_y
        weighted = dx * weights[:, None]
        gram, cross = weighted.T @ dx, weighted.T @ dy
        ss_y = weights @ (dy * dy)
        # Of squares of differences between means, when each mean is off by some units in the last place.
        noise = np.sum(np.abs(weighted) * (16.0 * _EPS * np.abs(means_x)), axis=0)
        for factor, part in zip(factors, self.parts, strict=True):
            if factor:
                gram += factor * part.gram
                cross += factor * part.cross
                ss_y += factor * part.ss_y
                noise += factor * part.noise
        n_rows = sum(part.n_rows for factor, part in zip(factors, self.parts, strict=True) if factor)
        mixed = Centered(n_rows, total, mean_x, mean_y, gram, cross, ss_y, noise)
        return without_constants(mixed) if self.fit_intercept else mixed

    def fit(self, factors: np.ndarray) -> tuple[Centered, np.ndarray]:
        """The mixture and its weights B; the intercept is ``mean_y - B'mean_x``."""
        mixed = self.mix(factors)
        return mixed, weights_for(mixed, self.alpha)

    def miss(self, mixed: Centered, b: np.ndarray) -> np.ndarray:
        """Mean error on the target, shape (n_targets,), of B with the intercept that goes with the mixture."""
        return np.asarray((self.target.mean_x - mixed.mean_x) @ b - (self.target.mean_y - mixed.mean_y))

    def loss(self, mixed: Centered, b: np.ndarray) -> float:
        """Held-out mean squared error: the variance of the errors and the square of their mean."""
        t, miss = self.target, self.miss(mixed, b)
        spread = t.ss_y.sum() + np.vdot(b, t.gram @ b - 2.0 * t.cross)
        return float(spread / t.weight + miss @ miss)

    def trusted_loss(self, factors: np.ndarray, what: str) -> float:
        """Held-out loss of a mixture, with a warning where rounding of the stored sums decides its fit."""
        mixed, b = self.fit(factors)
        if (share := noise_share(mixed, self.alpha)) > 1.0:
            warnings.warn(
                f"alpha {self.alpha:g} is below what rounding of the stored sums allows for {what} (its weights may "
                f"change by {share:.2g} times themselves): raise alpha, or count with precision 'float64'",
                IllConditionedWarning,
                stacklevel=3,
            )
        return max(self.loss(mixed, b), 0.0)

    def loss_and_gradient(self, factors: np.ndarray) -> tuple[float, np.ndarray]:
        """Held-out loss L of a mixture, and its derivatives by the factors.

        The joint stationarity of B and b is differentiated. With A = G + αI of the mixture, m and W its mean and
        weight, M the target's weight, e its mean error and r_s that of source s, let
        ``A U = (G_target B - C_target) / M + (mean_target - m) e'``. Then
        ``dL/da_s = -2 (<U, G_s B - C_s> + W_s <U'(mean_s - m) + e / W, r_s>)``.
        """
        t, (mixed, b) = self.target, self.fit(factors)
        miss = self.miss(mixed, b)
        toward = t.gram @ b - t.cross
        loss = (t.ss_y.sum() + np.vdot(b, toward - t.cross)) / t.weight + miss @ miss
        pull = toward / t.weight + np.outer(t.mean_x - mixed.mean_x, miss)
        u = weights_for(replace(mixed, cross=pull), self.alpha)
        outer, gradient = u @ b.T, np.empty(len(self.parts))
        for s, part in enumerate(self.parts):
            dx = part.mean_x - mixed.mean_x
            residual = dx @ b - (part.mean_y - mixed.mean_y)
            level = (dx @ u + miss / mixed.weight) @ residual
            gradient[s] = -2.0 * (np.vdot(outer, part.gram) - np.vdot(u, part.cross) + part.weight * level)
        return float(loss), gradient
