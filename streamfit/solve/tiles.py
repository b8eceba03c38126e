"""Symmetric matrices tile by tile, and the plan, in whole numbers, of a solve that never holds one whole.

Floor 3: imports centered, plan, ridge, errors. Where tiles lie is for others to say: here they are read and written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from streamfit.centered import Centered
from streamfit.errors import PlanError
from streamfit.plan import PROCESS_BYTES, size_text
from streamfit.solve.ridge import without_constants

N_PROBES = 64
"""Random vectors that estimate the effective degrees of freedom."""
N_EXACT = 128
"""Features up to which the inverse is computed instead."""
_VECTORS = 400
"""Arrays of shape (n_features,) that exist at a time: means, units, a Krylov basis, probes and their solutions."""
_TARGET_ARRAYS = 10
"""Arrays of shape (n_features, block_targets) that exist at a time."""
_SOLVES = 20
"""Solves, about, that the certificate takes: for condition and smallest eigenvalue."""


class TileSource(Protocol):
    """A symmetric matrix of which tiles of the upper triangle can be read."""

    @property
    def n_features(self) -> int:
        """Its order D."""

    @property
    def edge(self) -> int:
        """Edge b of the square tiles; those of the last row and column may be smaller."""

    @property
    def work_tiles(self) -> int:
        """Tiles' worth of memory that one read takes at most, its result included."""

    @property
    def stored_tiles(self) -> int:
        """Tiles at rest that one tile is made of."""

    def read(self, i: int, j: int) -> np.ndarray:
        """Tile (i, j), i <= j, float64, which the caller may overwrite; a diagonal tile has both its halves."""


class TileStore(Protocol):
    """A place for tiles."""

    def read(self, i: int, j: int) -> np.ndarray:
        """What was written as tile (i, j), as an array of its own."""

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Keep a tile."""


@dataclass(frozen=True)
class TiledSums:
    """What `Centered` holds, with its large matrices read in parts. Features that do not vary are cleared.

    Parameters
    ----------
    gram : TileSource
    cross : callable
        From a slice of targets to their cross products, an array of shape (n_features, n_block) to be overwritten.
    diagonal, noise, mean_x : arrays of shape (n_features,)
        Diagonal of the Gram matrix, what rounding may have left on it, and means.
    mean_y, ss_y : arrays of shape (n_targets,)
    """

    gram: TileSource
    cross: Callable[[slice], np.ndarray]
    diagonal: np.ndarray
    noise: np.ndarray
    mean_x: np.ndarray
    mean_y: np.ndarray
    ss_y: np.ndarray

    @classmethod
    def of(cls, c: Centered, edge: int, *, fit_intercept: bool = True) -> TiledSums:
        """Sums that are in memory, or memory-mapped, cut into tiles."""
        c = without_constants(c) if fit_intercept else c.about(np.zeros_like(c.mean_x), np.zeros_like(c.mean_y))
        gram, cross = ArrayTiles(c.gram, edge), c.cross
        diagonal = np.diag(c.gram).copy()
        return cls(gram, lambda part: cross[:, part].copy(), diagonal, c.noise, c.mean_x, c.mean_y, c.ss_y)


@dataclass(frozen=True)
class ArrayTiles:
    """Tiles of one array: a source, and a place to write to.

    Parameters
    ----------
    array : float64 array of shape (n_features, n_features)
    edge : int
    """

    array: np.ndarray
    edge: int
    work_tiles: int = 3
    stored_tiles: int = 1

    @property
    def n_features(self) -> int:
        """Order of the matrix."""
        return len(self.array)

    def read(self, i: int, j: int) -> np.ndarray:
        """A copy of tile (i, j)."""
        edges = tile_edges(self.n_features, self.edge)
        return np.array(self.array[edges[i], edges[j]], order="C")

    def write(self, i: int, j: int, tile: np.ndarray) -> None:
        """Overwrite tile (i, j)."""
        edges = tile_edges(self.n_features, self.edge)
        self.array[edges[i], edges[j]] = tile


def tile_edges(n_features: int, edge: int) -> list[slice]:
    """Rows of each row of tiles."""
    return [slice(lo, min(lo + edge, n_features)) for lo in range(0, n_features, edge)]


@dataclass(frozen=True)
class TiledPlan:
    """How a system is factored and solved within a number of bytes.

    Parameters
    ----------
    n_features, n_targets, edge : int
    panels : tuple of (int, int)
        Rows of tiles, from and to, that are in memory together while they are factored; the last ones stay there.
    panel_tiles : int
        Tiles of the factor in memory at most.
    block_targets : int
        Targets that are solved for at a time.
    work_tiles, stored_tiles : int
        As the source has them.
    """

    n_features: int
    n_targets: int
    edge: int
    panels: tuple[tuple[int, int], ...]
    panel_tiles: int
    block_targets: int
    work_tiles: int
    stored_tiles: int

    @property
    def n_rows(self) -> int:
        """Rows of tiles T."""
        return -(-self.n_features // self.edge)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one whole tile."""
        return 8 * self.edge**2

    @property
    def memory_bytes(self) -> int:
        """Peak memory of the process, with what its libraries take before it has any data."""
        vectors = 8 * self.n_features * (_VECTORS + self.n_targets + _TARGET_ARRAYS * self.block_targets)
        return PROCESS_BYTES + vectors + (self.panel_tiles + self.work_tiles) * self.tile_bytes

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the factor's tiles that are kept outside memory."""
        return self.tile_bytes * _tiles_of(self.n_rows, 0, self.panels[-1][0])

    @property
    def sweeps(self) -> int:
        """Times that the factor is walked through after it was made, at most."""
        return 4 * -(-self.n_targets // self.block_targets) + 2 * _SOLVES

    @property
    def read_bytes(self) -> int:
        """Bytes read, decompressed: the matrix's tiles for factor and residuals, and the factor's from scratch."""
        t = self.n_rows
        matrix = t + (1 + 2 * -(-self.n_targets // self.block_targets)) * _tiles_of(t, 0, t)
        streamed = sum(start * (t - start) for start, _ in self.panels)
        again = self.sweeps * (_tiles_of(t, 0, t) - self.panel_tiles)
        return self.tile_bytes * (self.stored_tiles * matrix + streamed + again)

    @cached_property
    def flops(self) -> float:
        """Operations of the factorisation, D³/3."""
        return self.n_features**3 / 3.0

    def lines(self) -> list[str]:
        """The plan as text."""
        t = self.n_rows
        rows = ", ".join(str(stop - start) for start, stop in self.panels)
        whole = size_text(8 * self.n_features**2)
        return [
            f"{self.n_features:,} features x {self.n_targets:,} targets: a matrix of {whole},"
            f" {_tiles_of(t, 0, t):,} tiles of {size_text(self.tile_bytes)} in its upper triangle",
            f"memory: {size_text(self.memory_bytes)}, of which {size_text(PROCESS_BYTES)} for the process,"
            f" {self.panel_tiles} tiles of the factor and {self.work_tiles} to work with",
            f"{len(self.panels)} panel(s) of {rows} rows of tiles; {self.block_targets:,} targets at a time",
            f"scratch: {size_text(self.scratch_bytes)}; read: up to {size_text(self.read_bytes)};"
            f" {self.flops / 1e9:,.0f} GFLOP",
        ]


def plan_tiles(source: TileSource, n_targets: int, memory_bytes: int) -> TiledPlan:
    """Choose panels as large as memory allows: the fewer there are, the less is read again.

    While a panel is factored, the rows of the factor above it pass through memory a tile at a time; with P panels of T
    rows of tiles, about ``P T² / 6`` tiles are read.

    Parameters
    ----------
    source : TileSource
    n_targets : int
    memory_bytes : int
        What the process may take in all; the plan's own `memory_bytes` is no more.

    Raises
    ------
    PlanError
        If one row of tiles does not fit, with both numbers.
    """
    d, edge = source.n_features, source.edge
    t = -(-d // edge)

    def plan(panels: tuple[tuple[int, int], ...], tiles: int, block: int) -> TiledPlan:
        return TiledPlan(d, n_targets, edge, panels, tiles, block, source.work_tiles, source.stored_tiles)

    smallest = plan(tuple((i, i + 1) for i in range(t)), t, 1)
    spare = memory_bytes - smallest.memory_bytes
    if spare < 0:
        msg = f"{size_text(memory_bytes)} of memory for {d:,} features"
        raise PlanError(
            msg, f"at least {size_text(smallest.memory_bytes)}, for a row of {t} tiles", "allow more memory"
        )
    # A quarter for targets, as far as there are so many: each further block reads all tiles once more.
    block = min(n_targets, 1 + spare // 4 // (8 * d * _TARGET_ARRAYS))
    spare -= 8 * d * _TARGET_ARRAYS * (block - 1)
    tiles = min(t + spare // smallest.tile_bytes, _tiles_of(t, 0, t))
    panels: list[tuple[int, int]] = []
    stop = t
    # From the last one up, so that the panel that stays in memory is a full one.
    while stop > 0:
        start = stop - 1
        while start > 0 and _needed(t, start - 1, stop) <= tiles:
            start -= 1
        panels.insert(0, (start, stop))
        stop = start
    return plan(tuple(panels), max(_needed(t, *panel) for panel in panels), max(block, 1))


def _tiles_of(n_rows: int, start: int, stop: int) -> int:
    """Tiles in some rows of the upper triangle."""
    return sum(n_rows - i for i in range(start, stop))


def _needed(n_rows: int, start: int, stop: int) -> int:
    """Tiles in memory for a panel: its own, and above it one column of tiles for each of its rows."""
    return _tiles_of(n_rows, start, stop) + (stop - start if start else 0)
