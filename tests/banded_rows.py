"""Rows with a strong, a weak and a useless block of features, their sums, and banded ridge solved on them in memory."""

import numpy as np

from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.targets import Dense

N, D, K = 90, 8, 3
rng = np.random.default_rng(17)
PHI = rng.normal(size=(N, D)) @ (np.eye(D) + 0.3 * rng.normal(size=(D, D))) + np.arange(D)
B = np.vstack([rng.normal(size=(3, K)), 0.1 * rng.normal(size=(3, K)), np.zeros((2, K))])
Y = PHI @ B + rng.normal(size=(N, K)) * [0.5, 1.0, 2.0] + [0.0, 5.0, -20.0]
W = rng.uniform(0.2, 3.0, size=N)
BLOCKS = {"strong": [2, 0, 1], "weak": slice(3, 6), "noise": range(6, 8)}
ALPHAS = {"strong": 0.3, "weak": 20.0, "noise": 500.0}
EACH = np.repeat(list(ALPHAS.values()), [3, 3, 2])


def moments(phi=PHI, y=Y, w=None, frame=None):
    targets = Dense(y.shape[1])
    return Moments.from_rows(phi, y, frame or Frame.from_sample(phi, y, targets), targets, weights=w)


def folds(phi=PHI, y=Y, n=4, w=None):
    frame = Frame.from_sample(phi, y, Dense(y.shape[1]))
    return {k: moments(phi[k::n], y[k::n], None if w is None else w[k::n], frame) for k in range(n)}


def whole(parts):
    first, *others = parts.values()
    return sum(others, first)


def in_memory(phi, y, each, w, fit_intercept):
    """Weights and intercept of the banded objective, from the normal equations of the rows."""
    x = np.column_stack([phi, np.ones(len(phi))]) if fit_intercept else phi
    root = np.sqrt(np.ones(len(phi)) if w is None else w)[:, None]
    penalty = np.diag(np.r_[each, np.zeros(int(fit_intercept))])
    b = np.linalg.solve((root * x).T @ (root * x) + penalty, (root * x).T @ (root * y))
    return (b[:-1], b[-1]) if fit_intercept else (b, np.zeros(y.shape[1]))
