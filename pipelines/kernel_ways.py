"""The contenders of `bench_kernel`: what each does once, and what it does for each alpha."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.linalg
from sklearn import kernel_approximation, linear_model
from threadpoolctl import threadpool_limits

from streamfit import RBF, Dense, Frame, LinearModel, MomentsAccumulator, Nystroem, RandomFourier, solve
from streamfit.arrays import Precision, column_major
from streamfit.features import FeatureMap
from streamfit.frame import BLOCK_ROWS
from streamfit.solve import whitened

Predict = Callable[[np.ndarray], np.ndarray]


class Way(ABC):
    """One contender: what it does once, and what it does for each alpha. Targets are float64 of shape (n, 1)."""

    def __init__(self, centers: np.ndarray, gamma: float, n_threads: int, memory: float) -> None:
        self.centers, self.gamma, self.n_threads, self.memory = centers, gamma, n_threads, memory
        self.n_rows = 0

    @abstractmethod
    def count(self, x: np.ndarray, y: np.ndarray) -> None:
        """Everything that alpha does not change."""

    @abstractmethod
    def fit(self, alpha: float) -> Predict:
        """One fit."""


class Streamfit(Way):
    """A thread a core counts every second run of blocks; sums are exact, so it does not matter which."""

    precision: Precision = "float32"

    def features(self) -> FeatureMap:
        return RBF(self.centers, self.gamma)

    def count(self, x: np.ndarray, y: np.ndarray) -> None:
        self.map, self.n_rows = self.features(), len(x)
        phi = self.map(x[:BLOCK_ROWS].astype(self.precision))
        frame = Frame.from_sample(phi, y[:BLOCK_ROWS], Dense(1), self.map.bounds)

        def some(first: int) -> Any:
            sums = MomentsAccumulator(frame, Dense(1), self.precision)
            for lo in range(first * BLOCK_ROWS, len(x), self.n_threads * BLOCK_ROWS):
                rows = slice(lo, lo + BLOCK_ROWS)
                inputs = x[rows].astype(self.precision, copy=False)
                # As workers do: features are made where they are multiplied.
                sums.add(self.map.pieces(column_major(inputs) if self.map.by_columns else inputs), y[rows])
            return sums.moments()

        with threadpool_limits(1), ThreadPoolExecutor(self.n_threads) as pool:
            total, *rest = pool.map(some, range(self.n_threads))
        for part in rest:
            total = total + part
        self.sums = total.centered()

    def fit(self, alpha: float) -> Predict:
        return LinearModel(self.map, solve(self.sums, alpha)).predict


class StreamfitNystroem(Streamfit):
    """The feature map."""

    def features(self) -> FeatureMap:
        return Nystroem(self.centers, self.gamma)


class StreamfitFourier(Streamfit):
    """Random features of the same kernel."""

    def features(self) -> FeatureMap:
        return RandomFourier(len(self.centers), self.gamma, 0, self.centers.shape[1])


class StreamfitWhitened(Streamfit):
    """The feature map's objective from sums of plain RBF features, which are a third of its work."""

    precision: Precision = "float64"

    def count(self, x: np.ndarray, y: np.ndarray) -> None:
        super().count(x, y)
        self.whitened = whitened(self.sums, self.map)

    def fit(self, alpha: float) -> Predict:
        model = LinearModel(self.map, self.whitened.solve(alpha))
        # Weights of the kernel itself are large and cancel: float32 predictions would lose the second digit after the
        # point of the error.
        return lambda x: model.predict(x.astype(self.precision))


class ScikitLearn(Way):
    """Features are centred in place, once, for Ridge's own intercept would copy them for every alpha."""

    kind: type[np.floating] = np.float64

    def count(self, x: np.ndarray, y: np.ndarray) -> None:
        m = len(self.centers)
        self.n_rows = min(len(x), max(m, int(self.memory / (np.dtype(self.kind).itemsize * m))))
        self.map = kernel_approximation.Nystroem(gamma=self.gamma, n_components=m, random_state=0)
        self.map.fit(self.centers.astype(np.float64))
        self.map.components_ = self.map.components_.astype(self.kind)
        self.map.normalization_ = self.map.normalization_.astype(self.kind)
        self.phi = np.empty((self.n_rows, m), self.kind)
        for lo in range(0, self.n_rows, BLOCK_ROWS):
            self.phi[lo : lo + BLOCK_ROWS] = self.map.transform(x[lo : min(lo + BLOCK_ROWS, self.n_rows)])
        self.mean_x, self.mean_y = self.phi.mean(axis=0), y[: self.n_rows].mean(axis=0)
        self.phi -= self.mean_x
        self.y = (y[: self.n_rows] - self.mean_y).astype(self.kind)

    def fit(self, alpha: float) -> Predict:
        ridge = linear_model.Ridge(alpha=alpha, solver="cholesky", fit_intercept=False, copy_X=False)
        weights = ridge.fit(self.phi, self.y).coef_.reshape(-1, 1)

        def predict(x: np.ndarray) -> np.ndarray:
            blocks = [x[lo : lo + BLOCK_ROWS] for lo in range(0, len(x), BLOCK_ROWS)]
            return np.concatenate([(self.map.transform(b) - self.mean_x) @ weights + self.mean_y for b in blocks])

        return predict


class ScikitLearnSingle(ScikitLearn):
    """The map is made in float64, in float32 it would lose the small eigenvalues; features and solve are float32."""

    kind = np.float32


class FalkonTranscribed(Way):
    """Algorithm 1 of Rudi, Carratino and Rosasco, FALKON: an optimal large scale kernel method (NIPS 2017).

    With T'T = K + ε M I, A'A = TT'/M + λI and β = T^-1 A^-1 u, conjugate gradients solve
    ``A'^-1 T'^-1 (K_nm'K_nm/n + λK) T^-1 A^-1 u = A'^-1 T'^-1 K_nm'y/n``.
    """

    iterations, tolerance, jitter = 20, 1e-7, 1e-13

    def count(self, x: np.ndarray, y: np.ndarray) -> None:
        self.kernel, self.n_rows = RBF(self.centers.astype(np.float64), self.gamma), len(x)
        self.x, self.mean_y = x, y.mean(axis=0)
        self.y = (y - self.mean_y)[:, 0]
        m = len(self.centers)
        self.t = scipy.linalg.cholesky(self.kernel(self.kernel.centers) + self.jitter * m * np.eye(m))

    def products(self, u: np.ndarray | None, v: np.ndarray | None) -> np.ndarray:
        """``K_nm'(K_nm u + v)``, blocks of rows at a time; None stands for zeros."""
        step = max(256, 2**22 // len(self.centers))

        def some(first: int) -> np.ndarray:
            total = np.zeros(len(self.centers))
            for lo in range(first * step, len(self.x), self.n_threads * step):
                near = self.kernel(self.x[lo : lo + step].astype(np.float64))
                right = 0.0 if v is None else v[lo : lo + step]
                total += near.T @ (right if u is None else near @ u + right)
            return total

        with threadpool_limits(1), ThreadPoolExecutor(self.n_threads) as pool:
            return np.asarray(sum(pool.map(some, range(self.n_threads))))

    def fit(self, alpha: float) -> Predict:
        n, m, t = self.n_rows, len(self.centers), self.t
        a = scipy.linalg.cholesky(t @ t.T / m + alpha / n * np.eye(m))

        def solve_for(factor: np.ndarray, b: np.ndarray, trans: int = 0) -> np.ndarray:
            return np.asarray(scipy.linalg.solve_triangular(factor, b, trans=trans, check_finite=False))

        def system(u: np.ndarray) -> np.ndarray:
            inner = solve_for(a, u)
            seen = solve_for(t, self.products(solve_for(t, inner), None) / n, trans=1)
            return solve_for(a, seen + alpha / n * inner, trans=1)

        residual = solve_for(a, solve_for(t, self.products(None, self.y) / n, trans=1), trans=1)
        u, direction, size = np.zeros(m), residual.copy(), float(residual @ residual)
        start = size
        for _ in range(self.iterations):
            if size <= self.tolerance**2 * start:
                break
            ahead = system(direction)
            step = size / float(direction @ ahead)
            u += step * direction
            residual -= step * ahead
            size, before = float(residual @ residual), size
            direction = residual + size / before * direction
        weights = solve_for(t, solve_for(a, u))[:, None]

        def predict(x: np.ndarray) -> np.ndarray:
            blocks = [x[lo : lo + BLOCK_ROWS].astype(np.float64) for lo in range(0, len(x), BLOCK_ROWS)]
            return np.concatenate([self.kernel(block) @ weights + self.mean_y for block in blocks])

        return predict


WAYS: dict[str, type[Way]] = {
    "streamfit RBF": Streamfit,
    "streamfit Nystroem": StreamfitNystroem,
    "streamfit whitened": StreamfitWhitened,
    "streamfit Fourier": StreamfitFourier,
    "scikit-learn": ScikitLearn,
    "scikit-learn float32": ScikitLearnSingle,
    "Falkon's algorithm": FalkonTranscribed,
}
