"""Random Fourier features: a Gaussian kernel as cosines at random frequencies. Floor 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfit.arrays import Array, computed, in_place, namespace
from streamfit.errors import ConfigError
from streamfit.features.base import PiecewiseMap, register
from streamfit.pieces import Pieces


@register
@dataclass(frozen=True, eq=False)
class RandomFourier(PiecewiseMap):
    """φ(x) = sqrt(2/n) cos(x W + b), so that φ(x)'φ(z) approaches exp(-gamma ||x - z||²) as n grows.

    Source: Rahimi and Recht, Random features for large-scale kernel machines (NIPS 2007), algorithm 1.

    Parameters
    ----------
    n : int
        Number of features.
    gamma : float
        Kernel width parameter, 1 / (2 sigma²).
    seed : int
    dim : int
        Number of input columns.
    frequencies, phases : arrays of shape (dim, n), (n,), optional
        Drawn from the seed when not given; stored with the map, so that no later generator can change them.

    Raises
    ------
    ConfigError
        If n, gamma or dim is not positive.
    """

    n: int
    gamma: float
    seed: int
    dim: int
    frequencies: np.ndarray = None  # type: ignore[assignment]
    phases: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.n < 1 or not self.gamma > 0 or self.dim < 1:
            msg = f"RandomFourier(n={self.n}, gamma={self.gamma}, dim={self.dim})"
            raise ConfigError(msg, "all three positive")
        # Plain numbers, so that the description is JSON and equal maps hash alike.
        for name, kind in (("n", int), ("gamma", float), ("seed", int), ("dim", int)):
            object.__setattr__(self, name, kind(getattr(self, name)))
        if self.frequencies is None:
            rng = np.random.default_rng(self.seed)
            w = rng.normal(scale=np.sqrt(2.0 * self.gamma), size=(self.dim, self.n))
            object.__setattr__(self, "frequencies", w)
            object.__setattr__(self, "phases", rng.uniform(0.0, 2.0 * np.pi, size=self.n))

    @property
    def n_inputs(self) -> int:
        return self.dim

    @property
    def n_features(self) -> int:
        return self.n

    @property
    def bounds(self) -> np.ndarray:
        return np.full(self.n, np.sqrt(2.0 / self.n))

    def made(self, x: Array) -> Pieces:
        xp = namespace(x)
        x = x if xp.isdtype(x.dtype, "real floating") else xp.astype(x, xp.float64)
        frequencies, phases = xp.astype(self.frequencies, x.dtype), xp.astype(self.phases, x.dtype)
        # The product adds the phases as well.
        inputs = xp.concat([x, xp.ones_like(x[:, :1])], axis=1)
        slopes = xp.concat([frequencies, phases[None, :]], axis=0)

        def fill(rows: slice, columns: slice, out: Array) -> None:
            computed(xp.matmul, inputs[rows, :], slopes[:, columns], out=out)
            in_place(xp.cos, out)
            out *= float(np.sqrt(2.0 / self.n))

        return Pieces(x, self.n, fill)
