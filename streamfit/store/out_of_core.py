"""Solving from a store whose Gram matrix is larger than memory. Floor 4: imports solve's tiles, and this folder."""

from __future__ import annotations

from pathlib import Path

from streamfit.solve.ridge import Solution
from streamfit.solve.tiled import solve_tiles
from streamfit.solve.tiled_cholesky import Progress
from streamfit.solve.tiles import TiledPlan, plan_tiles
from streamfit.store.mix import Mix
from streamfit.store.store import Store
from streamfit.store.tiles import Scratch, StoreTiles


def plan_tiled(store: Store, *, memory_bytes: int, mix: Mix | None = None) -> TiledPlan:
    """What `solve_tiled` will take, in bytes and operations; reads no sums.

    Parameters
    ----------
    store : Store
    memory_bytes : int
        What the process may take in all.
    mix : Mix, optional

    Raises
    ------
    PlanError
        If even the smallest panel does not fit, with both numbers.
    MismatchError
        If no rows count.
    """
    return plan_tiles(StoreTiles(store, mix), store.header.frame.n_targets, memory_bytes)


def solve_tiled(
    store: Store,
    alpha: float,
    *,
    memory_bytes: int,
    scratch: Path | None = None,
    fit_intercept: bool = True,
    mix: Mix | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Solve ridge regression from a store, a panel of the Gram matrix in memory at a time.

    Minimises ``sum_t w_t ||B'φ_t + b - y_t||² + alpha ||B||²`` over B and, unless switched off, an unpenalised
    intercept b, as `solve(store.moments(mix=mix), alpha)` does; see `solve_tiles` for how the certificate and the
    effective degrees of freedom differ. Takes D³/3 operations, and walks through the matrix three times and through the
    factor some thirty times: that takes less than the factor from some ten thousand features on.

    Parameters
    ----------
    store : Store
        Pin its commit where others may compact and collect meanwhile.
    alpha : float
        Nonnegative, unscaled by n.
    memory_bytes : int
        What the process may take in all, of which `plan.PROCESS_BYTES` are counted for libraries.
    scratch : Path, optional
        Folder for the factor's tiles that memory has no room for; they are deleted at the end.
    fit_intercept : bool
    mix : Mix, optional
        Weights of segments.
    progress : callable, optional
        Gets operations done and in all.

    Raises
    ------
    PlanError
        If even the smallest panel does not fit in memory, or the factor not on the disk.
    SolveError
        If alpha is negative or not finite, or the system is not positive definite, naming a feature.
    StoreError
        If the store is damaged, or the scratch folder cannot be written.
    MismatchError
        If no rows count.

    Warns
    -----
    IllConditionedWarning
        If alpha is so small that rounding of the stored sums decides.
    """
    tiles = StoreTiles(store, mix, fit_intercept=fit_intercept)
    plan = plan_tiles(tiles, store.header.frame.n_targets, memory_bytes)
    with Scratch(plan, scratch) as place:
        return solve_tiles(tiles.sums(), alpha, plan, place, names=store.header.features.names(), progress=progress)
