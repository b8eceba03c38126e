"""Nyström features: a Gaussian kernel, exact on given centers, as a plain inner product. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from streamfit.arrays import Array, device_of, namespace
from streamfit.errors import ConfigError
from streamfit.features.base import FeatureMap, register
from streamfit.features.rbf import RBF

_DIGITS = 1e-3
"""Rounding of float32, relative to the smallest feature, above which features are computed in float64."""
_ROWS = 1024
"""Rows whose kernel values are held at a time."""


@register
@dataclass(frozen=True, eq=False)
class Nystroem(FeatureMap):
    """φ(x) = W'k(x) with W = V Λ^(-1/2), where k_j(x) = exp(-gamma ||x - c_j||²) and K = V Λ V' on the centers.

    ``φ(x)'φ(z) = k(x)'K⁺k(z)`` approaches the kernel as centers are added and equals it on them, so ridge regression on
    these features, ``||y - Φw - b||² + alpha ||w||²``, is kernel ridge regression restricted to the span of the
    centers: ``||y - K_nm β - b||² + alpha β'Kβ`` with β = Ww. Ridge on `RBF` features penalises ``||β||²`` instead,
    which is another model. Any orthogonal matrix on the right of W gives the same kernel (scikit-learn's Nystroem takes
    V Λ^(-1/2) V'); with this one the features are ordered by how much they vary, each in its own scale, which sums in
    float32 keep. The same fit comes from sums of `RBF` features at a third of the cost: see `whitened`.

    Source: Williams and Seeger, Using the Nyström method to speed up kernel machines (NIPS 2000).

    Parameters
    ----------
    centers : floating array of shape (n_centers, n_inputs)
    gamma : float
        1 / (2 sigma²), in squared units of the inputs.
    whitening : array of shape (n_centers, n_features), optional
        W; computed from the centers when not given, and stored with the map, for eigenvectors are not the same bits on
        every machine. Directions in which K is no more than rounding are left out: there may be fewer features than
        centers.

    Raises
    ------
    ConfigError
        If there are no centers, gamma is not positive and finite, or W has another number of rows.

    Examples
    --------
    >>> import numpy as np
    >>> features = Nystroem(np.array([[0.0], [1.0]]), gamma=1.0)
    >>> phi = features(np.array([[0.0], [1.0]]))
    >>> (phi @ phi.T).round(4).tolist()
    [[1.0, 0.3679], [0.3679, 1.0]]
    """

    centers: np.ndarray
    gamma: float
    whitening: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        kernel = RBF(self.centers, self.gamma)
        object.__setattr__(self, "gamma", kernel.gamma)
        if self.whitening is None:
            object.__setattr__(self, "whitening", kernel_whitening(kernel))
        if self.whitening.ndim != 2 or self.whitening.shape[0] != self.centers.shape[0] or not self.whitening.shape[1]:
            msg = f"whitening of shape {tuple(self.whitening.shape)} for {self.centers.shape[0]} centers"
            raise ConfigError(msg, "(n_centers, n_features)")

    @property
    def n_inputs(self) -> int:
        return int(self.centers.shape[1])

    @property
    def n_features(self) -> int:
        return int(self.whitening.shape[1])

    def keep(self, indices: Sequence[int]) -> Nystroem:
        return Nystroem(self.centers, self.gamma, np.ascontiguousarray(self.whitening[:, np.asarray(indices)]))

    @property
    def bounds(self) -> np.ndarray:
        # φ(x) is the projection of a unit vector of the kernel's space.
        return np.ones(self.n_features)

    def apply(self, x: Array) -> Array:
        xp = namespace(x)
        x = x if xp.isdtype(x.dtype, "real floating") else xp.astype(x, xp.float64)
        whitening = xp.astype(self.whitening, xp.float64, copy=False)
        kind = xp.float64 if _is_wide(whitening) else x.dtype
        whitening = xp.astype(whitening, kind, copy=False)
        kernel = RBF(self.centers, self.gamma)
        phi = xp.empty((x.shape[0], self.n_features), dtype=x.dtype, device=device_of(x))
        for lo in range(0, x.shape[0], _ROWS):
            rows = slice(lo, min(lo + _ROWS, x.shape[0]))
            near = xp.astype(x[rows, :], kind, copy=False)
            phi[rows, :] = xp.astype(kernel.apply(near) @ whitening, x.dtype, copy=False)
        return phi


def computed_wide(features: Nystroem) -> bool:
    """Whether features of float32 inputs are computed in float64, for the sake of their digits."""
    return _is_wide(np.asarray(features.whitening, dtype=np.float64))


def _is_wide(whitening: Array) -> bool:
    # A feature of eigenvalue λ is of size sqrt(λ/n) and carries the kernel's rounding times λ^(-1/2).
    xp = namespace(whitening)
    largest = float(xp.max(xp.sum(whitening * whitening, axis=0)))
    return bool(2.0**-24 * float(whitening.shape[0]) ** 0.5 * largest > _DIGITS)


def kernel_whitening(kernel: RBF) -> np.ndarray:
    """``W = V Λ^(-1/2)`` of the kernel matrix ``K = V Λ V'`` of the centers, without directions that rounding makes.

    Parameters
    ----------
    kernel : RBF
        On the host.

    Returns
    -------
    float64 array of shape (n_centers, rank)
        Columns by falling eigenvalue; ``W'KW`` is the identity.
    """
    between = kernel(np.asarray(kernel.centers, dtype=np.float64))
    eigenvalues, vectors = scipy.linalg.eigh((between + between.T) / 2.0, check_finite=False, driver="evd")
    kept = eigenvalues > len(between) * np.finfo(np.float64).eps * eigenvalues[-1]
    whitening = (vectors[:, kept] / np.sqrt(eigenvalues[kept]))[:, ::-1]
    # An eigenvector's sign is anyone's choice; its largest entry is made positive.
    largest = np.abs(whitening).argmax(axis=0)
    signs = np.sign(whitening[largest, np.arange(whitening.shape[1])])
    return np.ascontiguousarray(whitening * signs)
