"""A Cholesky factor in tiles, of which no more are in memory than a plan allows.

Floor 3: imports tiles, errors. Tiles are walked here because `dask.array.linalg.cholesky` holds the factor in memory
while it runs (written to disk at once, on one thread, it took 1.6 and 1.4 times the bytes of the triangle with 4,096
and 8,192 features in tiles of 512).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import blas, lapack

from streamfit.errors import SolveError
from streamfit.solve.tiles import TiledPlan, TileSource, TileStore, tile_edges

Progress = Callable[[float, float], None]
"""Called with the floating point operations that are done and those of the whole factorisation."""


@dataclass(frozen=True)
class TiledFactor:
    """U of ``S^-1 (G + alpha I) S^-1 = U'U``, upper triangular, S² being the diagonal of G + alpha I.

    Parameters
    ----------
    edges : list of slice
        Rows of each row of tiles.
    units : array of shape (n_features,)
        Diagonal of S.
    kept : dict of (int, int) to array
        Tiles of U that are in memory: those of the last panel, and as many others as `room` allows.
    room : int
    scratch : TileStore
        Has the others.
    norm : float
        1-norm of the scaled system.
    frobenius, top : float
        Of G: Frobenius norm; of G + alpha I: an upper bound on the largest eigenvalue (the least of two norms).
    weakest : int
        The feature that those before it explain best: its pivot is the least.
    """

    edges: list[slice]
    units: np.ndarray
    kept: dict[tuple[int, int], np.ndarray]
    room: int
    scratch: TileStore
    norm: float
    frobenius: float
    top: float
    weakest: int

    def tile(self, i: int, j: int) -> np.ndarray:
        """Tile (i, j) of U, i <= j."""
        if (i, j) in self.kept:
            return self.kept[i, j]
        tile = self.scratch.read(i, j)
        if len(self.kept) < self.room:
            self.kept[i, j] = tile
        return tile

    def solve_scaled(self, right: np.ndarray) -> np.ndarray:
        """``(U'U)^-1 right``, in place, for an array of shape (n_features, n_right).

        Two walks through U (Golub and Van Loan, Matrix computations, 3.1.3 and 3.1.4), a tile at a time.
        """
        rows = list(enumerate(self.edges))
        for i, r in rows:
            right[r] = blas.dtrsm(1.0, self.tile(i, i).T, right[r], lower=1)
            for j, c in rows[i + 1 :]:
                right[c] -= self.tile(i, j).T @ right[r]
        for i, r in reversed(rows):
            for j, c in rows[i + 1 :]:
                right[r] -= self.tile(i, j) @ right[c]
            right[r] = blas.dtrsm(1.0, self.tile(i, i).T, right[r], lower=1, trans_a=1)
        return right

    def solve(self, right: np.ndarray) -> np.ndarray:
        """``(G + alpha I)^-1 right``, in place, for an array of shape (n_features, n_right)."""
        right /= self.units[:, None]
        self.solve_scaled(right)
        right /= self.units[:, None]
        return right


def factor_tiles(
    gram: TileSource,
    diagonal: np.ndarray,
    alpha: float,
    plan: TiledPlan,
    scratch: TileStore,
    *,
    names: list[str] | None = None,
    progress: Progress | None = None,
) -> TiledFactor:
    """Factor ``G + alpha I``, scaled to a unit diagonal as in `solve`, a panel of rows of tiles at a time.

    Left-looking: a panel is read once, every row of U above it is taken off tile by tile, and only then is it factored
    and written once (D'Azevedo and Dongarra, The design and implementation of the parallel out-of-core ScaLAPACK LU,
    QR, and Cholesky factorization routines, Concurrency: Practice and Experience 12, 2000; Golub and Van Loan, Matrix
    computations, 4.2). A tile is read in about a tenth of the time in which it is multiplied, so nothing is read ahead.

    Parameters
    ----------
    gram : TileSource
    diagonal : array of shape (n_features,)
    alpha : float
    plan : TiledPlan
    scratch : TileStore
    names : list of str, optional
    progress : callable, optional

    Raises
    ------
    SolveError
        If the matrix is not positive definite, naming the feature at which that shows.
    """
    units = np.sqrt(np.maximum(diagonal + alpha, 0.0))
    if not (units > 0).all():
        raise indefinite(int(np.argmin(units)), alpha, names, "does not vary")
    work = _Factoring(gram, alpha, units, plan, scratch, names, progress)
    for start, stop in plan.panels:
        work.load(start, stop)
        work.take_off_above(start, stop)
        work.factor(start, stop)
        if stop < plan.n_rows:
            work.write()
    return work.result()


class _Factoring:
    """The state of one factorisation; `panel` has the tiles in memory."""

    def __init__(
        self,
        gram: TileSource,
        alpha: float,
        units: np.ndarray,
        plan: TiledPlan,
        scratch: TileStore,
        names: list[str] | None,
        progress: Progress | None,
    ) -> None:
        self._gram, self._alpha, self._units, self._scratch = gram, alpha, units, scratch
        self._names, self._progress, self._flops, self._room = names, progress, plan.flops, plan.panel_tiles
        self._edges = tile_edges(gram.n_features, gram.edge)
        self._panel: dict[tuple[int, int], np.ndarray] = {}
        self._sizes, self._scaled_sizes, self._pivots = np.zeros((3, len(units)))
        self._squares = self._done = 0.0

    def load(self, start: int, stop: int) -> None:
        """Read rows of tiles, scaled."""
        for i in range(start, stop):
            for j in range(i, len(self._edges)):
                self._panel[i, j] = self._scaled(i, j)

    def _scaled(self, i: int, j: int) -> np.ndarray:
        r, c = self._edges[i], self._edges[j]
        tile = np.ascontiguousarray(self._gram.read(i, j))
        self._squares += (1.0 if i == j else 2.0) * float(np.vdot(tile, tile))
        if i == j:
            tile[np.diag_indices(len(tile))] += self._alpha
        _add_sizes(self._sizes, tile, r, c)
        tile /= self._units[c]
        tile /= self._units[r, None]
        _add_sizes(self._scaled_sizes, tile, r, c)
        return tile

    def take_off_above(self, start: int, stop: int) -> None:
        """Subtract what all rows above the panel contribute, each of their tiles read once."""
        for k in range(start):
            column = {i: self._scratch.read(k, i) for i in range(start, stop)}
            for j in range(start, len(self._edges)):
                above = column[j] if j in column else self._scratch.read(k, j)
                for i in range(start, min(stop, j + 1)):
                    self._count(_take_off(self._panel[i, j], column[i], above))

    def factor(self, start: int, stop: int) -> None:
        """Factor the panel, to which nothing above it contributes any more."""
        panel = self._panel
        for i in range(start, stop):
            for j in range(i, len(self._edges)):
                for k in range(start, i):
                    self._count(_take_off(panel[i, j], panel[k, i], panel[k, j]))
            _, info = lapack.dpotrf(panel[i, i].T, lower=1, clean=1, overwrite_a=1)
            if info > 0:
                feature = self._edges[i].start + int(info) - 1
                raise indefinite(feature, self._alpha, self._names, "is a combination of others")
            self._pivots[self._edges[i]] = np.diag(panel[i, i])
            height = len(panel[i, i])
            self._count(height**3 / 3.0)
            for j in range(i + 1, len(self._edges)):
                # A tile in C order is its transpose in Fortran order, so X U = B' is solved for U'X = B, in place.
                blas.dtrsm(1.0, panel[i, i].T, panel[i, j].T, side=1, lower=1, trans_a=1, overwrite_b=1)
                self._count(float(height * panel[i, j].size))

    def write(self) -> None:
        """Move the panel out of memory."""
        for i, j in list(self._panel):
            self._scratch.write(i, j, self._panel.pop((i, j)))

    def _count(self, flops: float) -> None:
        self._done += flops
        if self._progress is not None:
            self._progress(self._done, self._flops)

    def result(self) -> TiledFactor:
        """The factor, of which the last panel stays in memory."""
        frobenius = float(np.sqrt(self._squares))
        return TiledFactor(
            self._edges,
            self._units,
            self._panel,
            self._room,
            self._scratch,
            norm=float(self._scaled_sizes.max()),
            frobenius=frobenius,
            top=min(float(self._sizes.max()), frobenius + self._alpha),
            weakest=int(np.argmin(self._pivots)),
        )


def _add_sizes(sizes: np.ndarray, tile: np.ndarray, r: slice, c: slice) -> None:
    """Add a tile's magnitudes to the column sums of the symmetric matrix."""
    magnitudes = np.abs(tile)
    sizes[c] += magnitudes.sum(axis=0)
    if r != c:
        sizes[r] += magnitudes.sum(axis=1)


def _take_off(tile: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """``tile -= left' right`` in place, of a diagonal tile the upper half alone; returns the operations."""
    flops = float(len(left)) * int(tile.size)
    # Seen in Fortran order, all three are transposed.
    if left is right:
        blas.dsyrk(-1.0, left.T, beta=1.0, c=tile.T, lower=1, overwrite_c=1)
        return flops
    blas.dgemm(-1.0, right.T, left.T, beta=1.0, c=tile.T, trans_b=1, overwrite_c=1)
    return 2.0 * flops


def indefinite(feature: int, alpha: float, names: list[str] | None, why: str) -> SolveError:
    """The error of a system without a Cholesky factor, with the feature that it shows at."""
    name = names[feature] if names else f"feature {feature}"
    msg = f"a Gram matrix that is not positive definite with alpha {alpha:g}: {name} {why}, but for rounding"
    return SolveError(msg, "independent features, or a larger alpha", f"raise alpha, or drop {name}")
