"""Origin, units and tiling in which products are taken: what sums must share to add up.

Floor 2: imports arrays, targets, errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from streamfit.arrays import Array, to_host
from streamfit.errors import ScaleError
from streamfit.targets import Targets

BLOCK_ROWS = 4096
"""Rows of one product. Fixed, because it decides where float32 rounds."""
_RUN_EDGES = 4096
"""Edges of the tiles whose products are taken at once: beyond, BLAS gains nothing, and a result takes memory."""
_MAX_EXPONENT = 200
_CONSTANT = 2.0**-44
"""Spread over mean up to which a column of the sample is constant but for rounding."""


def tile_size(n_features: int) -> int:
    """Edge of the square tiles that the Gram matrix is kept in."""
    for limit, size in ((512, n_features), (4096, 512), (16384, 1024)):
        if n_features <= limit:
            return max(size, 1)
    return 2048


def tile_pairs(n_features: int) -> Iterator[tuple[int, slice, slice]]:
    """Tiles of the upper triangle in storage order: (index, rows, columns)."""
    b = tile_size(n_features)
    edges = [slice(lo, min(lo + b, n_features)) for lo in range(0, n_features, b)]
    pairs = ((r, c) for i, r in enumerate(edges) for c in edges[i:])
    return ((index, r, c) for index, (r, c) in enumerate(pairs))


def n_tiles(n_features: int) -> int:
    """Number of tiles in the upper triangle."""
    t = -(-n_features // tile_size(n_features))
    return t * (t + 1) // 2


def tiles_at_once(n_tiles: int, edge: int, n_threads: int) -> int:
    """Most neighbouring tiles, of so many and of some edge, that one product takes where threads share the tiles."""
    return max(1, min(_RUN_EDGES // edge, n_tiles // n_threads))


@dataclass(frozen=True)
class Panel:
    """A block of the Gram matrix, cut along its tiles: what one task sums where the whole does not fit into a worker.

    Parameters
    ----------
    n_features : int
    n_bands : int
        Bands of tiles that rows and columns are cut into; 1 makes one panel of the whole upper triangle.
    row, column : int
        The two bands, row <= column < n_bands.
    """

    n_features: int
    n_bands: int = 1
    row: int = 0
    column: int = 0

    def tiles(self) -> list[tuple[int, slice, slice]]:
        """Its tiles of the upper triangle, as `tile_pairs` gives them."""
        bands = bands_of(self.n_features, self.n_bands)
        rows, columns = bands[self.row], bands[self.column]
        return [
            (index, r, c)
            for index, r, c in tile_pairs(self.n_features)
            if rows.start <= r.start < rows.stop and columns.start <= c.start < columns.stop
        ]

    def features(self) -> slice:
        """Features whose cross-moments it holds: those of its band on the diagonal, and none beside it."""
        return bands_of(self.n_features, self.n_bands)[self.row] if self.row == self.column else slice(0, 0)


def bands_of(n_features: int, n_bands: int) -> list[slice]:
    """Features of each band: whole tiles, as many in one as in another or one less."""
    b, t = tile_size(n_features), -(-n_features // tile_size(n_features))
    ends = [min(band * t // n_bands * b, n_features) for band in range(n_bands + 1)]
    return [slice(lo, hi) for lo, hi in pairwise(ends)]


def panels_of(n_features: int, n_bands: int) -> list[Panel]:
    """All panels of the upper triangle; each of its tiles is in one of them."""
    return [Panel(n_features, n_bands, i, j) for i in range(n_bands) for j in range(i, n_bands)]


_BOUND_BITS = 12
"""A bounded feature's unit is at least 2^-12 of its bound: squares up to 2^24 leave room for 2^48 rows."""
_LARGEST = 1e37
"""Origins are rounded to float32, which holds no more."""


@dataclass(frozen=True)
class Frame:
    """Origin and power-of-two units in which products are taken: part of a store's header, never changed.

    Parameters
    ----------
    origin : float64 array of shape (n_features,)
        Subtracted from features first: with mean/std = 1000, float32 products about zero lose the weights.
    exponents : int32 array of shape (n_features,)
        Features are divided by 2^exponent, so that one unit is about a standard deviation of the sample.
    y_origin, y_exponents : arrays of shape (n_targets,)
        The same for targets; zeros for one-hot targets.
    """

    origin: np.ndarray
    exponents: np.ndarray
    y_origin: np.ndarray
    y_exponents: np.ndarray

    @classmethod
    def identity(cls, n_features: int, n_targets: int) -> Frame:
        """No shift, no scaling."""
        return cls(
            np.zeros(n_features),
            np.zeros(n_features, np.int32),
            np.zeros(n_targets),
            np.zeros(n_targets, np.int32),
        )

    @classmethod
    def from_sample(
        cls,
        phi: Array,
        y: Array,
        targets: Targets,
        bounds: np.ndarray | None = None,
        weights: np.ndarray | None = None,
    ) -> Frame:
        """Choose the frame from a sample of feature rows and their targets.

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)
        y : array of shape (n_rows, n_targets), or integer (n_rows,) for one-hot targets
        targets : Targets
        bounds : array of shape (n_features,), optional
            Largest magnitude that each feature can take. A feature that is nearly zero throughout the sample but
            bounded, as a radial basis function is, then gets a unit in which its bound still has room.
        weights : array of shape (n_rows,), optional
            Row weights. Units are those of a weighted row, so that small weights do not fall below the grid.

        Raises
        ------
        ScaleError
            If the sample is not finite, or too large to be squared.
        """
        origin, exponents = _center_and_unit(to_host(phi), weights)
        if bounds is not None:
            typical = 1.0 if weights is None or not weights.any() else float(np.sqrt(np.mean(weights)))
            _, top = np.frexp(np.where(np.isfinite(bounds), bounds * typical, 0.0))
            exponents = np.where(np.isfinite(bounds), np.maximum(exponents, top - _BOUND_BITS), exponents)
            exponents = exponents.astype(np.int32)
        if targets.one_hot:
            y_origin, y_exponents = np.zeros(targets.n_targets), np.zeros(targets.n_targets, np.int32)
        else:
            y_origin, y_exponents = _center_and_unit(to_host(y), weights)
        return cls(origin, exponents, y_origin, y_exponents)

    @property
    def n_features(self) -> int:
        """Number of features D."""
        return len(self.origin)

    @property
    def n_targets(self) -> int:
        """Number of targets K."""
        return len(self.y_origin)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Frame):
            return False
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]


def _center_and_unit(sample: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    sample = np.asarray(sample, dtype=np.float64)
    if not np.isfinite(sample).all():
        msg = "a sample with NaN or infinite values"
        raise ScaleError(msg, "finite features and targets")
    if sample.size and np.abs(sample).max() > _LARGEST:
        msg = f"a sample with values of {np.abs(sample).max():.3g}"
        raise ScaleError(msg, f"at most {_LARGEST:.0e} in magnitude", "rescale that column")
    mean = sample.mean(axis=0) if len(sample) else np.zeros(sample.shape[1])
    spread = np.sqrt(np.mean((sample - mean) ** 2, axis=0)) if len(sample) else np.zeros(sample.shape[1])
    # A mean well inside the spread costs no accuracy; zero then keeps sparse and integer features as they are.
    # Rounded to float32, the origin is the same number in both precisions.
    shift = np.where(np.abs(mean) > 2.0 * spread, mean, 0.0).astype(np.float32).astype(np.float64)
    rms = np.sqrt(np.mean((sample - shift) ** 2, axis=0)) if len(sample) else spread
    # Where the sample is constant, what rounding leaves of it is no unit: rows that do vary would overflow the sums.
    constant = (spread <= _CONSTANT * np.abs(mean)) & (rms > 0)
    unit = np.where(constant, np.abs(mean), rms)
    if weights is not None and weights.any():
        unit = unit * np.sqrt(np.mean(weights))
    _, exponents = np.frexp(unit)
    exponents = np.where(rms > 0, np.clip(exponents, -_MAX_EXPONENT, _MAX_EXPONENT), 0)
    return shift, exponents.astype(np.int32)
