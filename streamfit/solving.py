"""Solving what a store holds: alphas chosen the way that was asked for, and a certificate. Floor 7.

The corpus is not read here; see `passes` for that.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from streamfit.arrays import Backend, device_array
from streamfit.centered import Statistic
from streamfit.config import SolveSection
from streamfit.density import DENSE_FEATURES
from streamfit.engine import progressing, say
from streamfit.errors import ConfigError, SolveError, StoreError
from streamfit.factoring import factored_on
from streamfit.feature_names import blocks_of, names_of
from streamfit.solve import (
    AlphaPath,
    AlphaScores,
    BandedChoice,
    Contributions,
    IllConditionedWarning,
    Solution,
    choose_banded,
    contributions,
    cross_validate,
    cross_validate_sparse,
    cross_validate_triangles,
    decompose,
    maximise_evidence,
    score_alphas,
    solve,
    solve_sparse,
    solve_targets,
    solve_triangle,
    widened,
)
from streamfit.sparse_moments import SparseMoments
from streamfit.store import Mix, Store, plan_tiled, solve_tiled
from streamfit.triangle import Triangle

log = logging.getLogger("streamfit")


@dataclass(frozen=True)
class Solved:
    """A solve of everything that a store holds.

    Parameters
    ----------
    solution : Solution
    path : AlphaPath or None
        Held-out loss of each alpha, where folds chose.
    moments : Moments, Triangle or SparseMoments, or None
        None where they do not fit in memory.
    seconds : float
    scores : AlphaScores or None
        What the training sums say of each alpha, where they chose.
    banded : BandedChoice or None
        The choice of an alpha for each block of features, where there is one.
    parts : Contributions or None
        What each block contributes to R² then.
    """

    solution: Solution
    path: AlphaPath | None
    moments: Statistic | None
    seconds: float
    scores: AlphaScores | None = None
    banded: BandedChoice | None = None
    parts: Contributions | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, without the weights."""
        solution = self.solution
        facts: dict[str, Any] = {"alpha": solution.alpha, "method": solution.method, "rank": solution.rank}
        facts |= {"effective_dof": solution.effective_dof, "seconds": self.seconds}
        if self.moments is not None:
            facts["rows"] = self.moments.n_rows
        if solution.target_alphas is not None:
            facts["target_alphas"] = solution.target_alphas.tolist()
        if self.path is not None:
            facts |= self.path.to_json()
        if self.scores is not None:
            facts["scores"] = self.scores.to_json()
        if self.banded is not None:
            facts["blocks"] = self.banded.to_json()
        if self.parts is not None:
            facts["contributions"] = self.parts.to_json()
        return {**facts, "certificate": solution.certificate.to_json()}


def solve_store(
    store: Store, section: SolveSection, console: Console, mix: Mix | None = None, *, backend: Backend = "numpy"
) -> Solved:
    """Solve from the sums alone: choose alpha as asked where there are several, and certify.

    Parameters
    ----------
    store : Store
    section : SolveSection
    console : rich Console
    mix : Mix, optional
        Weights of segments, in the folds that alpha is chosen on as well.
    backend : {'numpy', 'cuda'}
        Where dense matrices are factored: LAPACK on this host, or cuSOLVER on its GPU, which was never run.

    Raises
    ------
    ConfigError
        If the backend has no device here, or what is asked for does not go together.
    StoreError
        If the store holds no rows.
    SolveError
        If there are too few folds, or the statistic of the store does not allow the choice.
    CertificateError
        If the optimum is not proved to the tolerance; what was found has been shown then.
    """
    started = time.perf_counter()
    if len(section.alphas) < 2 and not section.blocks and (section.choose_by != "kfold" or section.per_target):
        msg = f"choose_by {section.choose_by!r}, per_target {section.per_target} with one alpha"
        raise ConfigError(msg, "several alphas", "there is nothing to choose")
    if section.one_standard_error and (section.choose_by != "kfold" or len(section.alphas) < 2):
        msg = f"one_standard_error with choose_by {section.choose_by!r} and {len(section.alphas)} alpha(s)"
        raise ConfigError(msg, "choose_by 'kfold' and several alphas", "only folds tell a standard error")
    if not store.head().n_rows:
        msg = f"{store.place} holds no rows yet"
        raise StoreError(msg, "at least one committed segment", "run `streamfit fit` or `resume` first")
    like = device_array(np.zeros(1), backend)
    folds = store.fold_moments(mix)
    total = summed(folds)
    with shown_warnings(console), factored_on(like):
        if isinstance(total, SparseMoments):
            solved = _of_sparse(store, section, folds, total)
        elif section.blocks:
            solved = _by_blocks(store, section, folds, total)
        elif isinstance(total, Triangle):
            solved = _of_triangles(store, section, folds, total)
        elif section.choose_by == "kfold" and not section.per_target:
            solved = _by_folds(names_of(store.header), section, folds, total)
        else:
            solved = _by_spectrum(section, folds, total)
    solved = replace(solved, seconds=time.perf_counter() - started)
    _show(solved, section, len(folds), console)
    solved.solution.certificate.require(section.tolerance)
    return solved


def solve_out_of_core(
    store: Store,
    section: SolveSection,
    memory_bytes: int,
    scratch: Path | None,
    console: Console,
    mix: Mix | None = None,
) -> Solved:
    """Solve for one alpha with a part of the Gram matrix in memory at a time; see `solve_tiled`.

    Parameters
    ----------
    store, section, console, mix
        As for `solve_store`.
    memory_bytes : int
        What this process may take in all.
    scratch : Path or None
        Folder for what memory has no room for; the system's for temporary files without it.

    Raises
    ------
    ConfigError
        If the section asks for a choice.
    PlanError
        If the memory is too small, with both numbers.
    CertificateError
        If the optimum is not proved to the tolerance.
    """
    refuse_choice(section)
    started = time.perf_counter()
    plan = plan_tiled(store, memory_bytes=memory_bytes, mix=mix)
    for line in plan.lines():
        say(console, line)
    with shown_warnings(console), progressing(console, "solve", 1000) as report:
        done = 0

        def progress(n: float, of: float) -> None:
            nonlocal done
            now = int(1000 * n / of) if of else 0
            report(now - done)
            done = now

        solution = solve_tiled(
            store,
            section.alphas[0],
            memory_bytes=memory_bytes,
            scratch=scratch,
            fit_intercept=section.fit_intercept,
            mix=mix,
            progress=progress,
        )
    solved = Solved(solution, None, None, time.perf_counter() - started)
    _show(solved, section, 0, console)
    solution.certificate.require(section.tolerance)
    return solved


def refuse_choice(section: SolveSection) -> None:
    """Check that a section asks for one alpha alone.

    Raises
    ------
    ConfigError
        If it does not: a choice takes the whole Gram matrix.
    """
    if len(section.alphas) > 1 or section.blocks or section.per_target or section.choose_by != "kfold":
        msg = "a choice of alphas out of core"
        raise ConfigError(msg, "one --alpha", "choose it on fewer features, or where the Gram matrix fits in memory")


def summed(folds: Mapping[int, Statistic]) -> Statistic:
    """The sum of some folds, at least one."""
    first, *others = folds.values()
    for other in others:
        first = first + other
    return first


@contextmanager
def shown_warnings(console: Console) -> Iterator[None]:
    """Show warnings about ill-conditioned systems as lines."""
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always", IllConditionedWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in raised):
        say(console, text, "yellow")


def _by_folds(names: list[str], section: SolveSection, folds: Mapping[int, Statistic], total: Statistic) -> Solved:
    path, alpha = None, section.alphas[0]
    if len(section.alphas) > 1:
        path = cross_validate(folds, np.array(section.alphas), fit_intercept=section.fit_intercept)
        alpha = path.one_se if section.one_standard_error else path.best
    return Solved(solve(total, alpha, fit_intercept=section.fit_intercept, names=names), path, total, 0.0)


def _of_triangles(store: Store, section: SolveSection, folds: Mapping[int, Statistic], total: Triangle) -> Solved:
    if section.choose_by != "kfold" or section.per_target:
        msg = f"choose_by {section.choose_by!r}, per_target {section.per_target} for a store with statistic 'qr'"
        raise SolveError(msg, "one alpha, or a grid and K-fold", "the others need a Gram matrix's eigenvectors")
    path, alpha = None, section.alphas[0]
    if len(section.alphas) > 1:
        parts = {fold: part for fold, part in folds.items() if isinstance(part, Triangle)}
        path = cross_validate_triangles(parts, np.array(section.alphas), fit_intercept=section.fit_intercept)
        alpha = path.one_se if section.one_standard_error else path.best
    names = names_of(store.header)
    return Solved(solve_triangle(total, alpha, fit_intercept=section.fit_intercept, names=names), path, total, 0.0)


def _of_sparse(store: Store, section: SolveSection, folds: Mapping[int, Statistic], total: SparseMoments) -> Solved:
    """Densely where few features occur, however many there could be; else by conjugate gradients."""
    if section.blocks:
        msg = "blocks of hashed features"
        raise ConfigError(msg, "one alpha for all", "hashed columns belong to no block: tokens of several share them")
    parts = {fold: part for fold, part in folds.items() if isinstance(part, SparseMoments)}
    kept = total.active if total.gram.n_entries else np.zeros(1, np.int64)
    if len(kept) <= DENSE_FEATURES:
        narrow = {fold: part.narrowed(kept) for fold, part in parts.items()}
        if section.choose_by == "kfold" and not section.per_target:
            every = store.header.features.names()
            solved = _by_folds([every[j] for j in kept], section, narrow, summed(narrow))
        else:
            solved = _by_spectrum(section, narrow, summed(narrow))
        return replace(solved, solution=widened(solved.solution, kept, total.frame.n_features), moments=total)
    if section.choose_by != "kfold" or section.per_target:
        msg = f"choose_by {section.choose_by!r}, per_target {section.per_target} with {len(kept):,} hashed features"
        raise SolveError(msg, "one alpha, or a grid and K-fold", "the others need the eigenvectors of a dense matrix")
    path, alpha = None, section.alphas[0]
    if len(section.alphas) > 1:
        path = cross_validate_sparse(parts, np.array(section.alphas), fit_intercept=section.fit_intercept)
        alpha = path.one_se if section.one_standard_error else path.best
    return Solved(solve_sparse(total, alpha, fit_intercept=section.fit_intercept), path, total, 0.0)


def _by_spectrum(section: SolveSection, folds: Mapping[int, Statistic], total: Statistic) -> Solved:
    """One decomposition for all alphas and targets."""
    grid, fit_intercept = np.sort(np.array(section.alphas)), section.fit_intercept
    spectrum = decompose(total, fit_intercept=fit_intercept, smallest_alpha=float(grid[0]))
    path, scores = None, None
    alphas: np.ndarray | float = grid[0]
    if len(grid) == 1:
        alphas = np.full(spectrum.n_targets, grid[0])
    elif section.choose_by == "kfold":
        path = cross_validate(folds, grid, fit_intercept=fit_intercept, per_target=True)
        alphas = path.one_se_per_target if section.one_standard_error else path.best_per_target
    elif section.choose_by == "gcv":
        scores = score_alphas(spectrum, grid)
        alphas = scores.best_per_target("gcv") if section.per_target else scores.best("gcv")
    else:
        scores = score_alphas(spectrum, grid)
        alphas = maximise_evidence(spectrum, per_target=section.per_target, bounds=(grid[0], grid[-1])).alphas
    found = solve_targets(total, alphas, fit_intercept=fit_intercept, spectrum=spectrum)
    solution = Solution(
        found.weights,
        found.intercept,
        float(np.exp(np.mean(np.log(np.maximum(found.alphas, np.finfo(float).tiny))))) if grid[0] > 0 else 0.0,
        spectrum.method,
        spectrum.rank,
        float(found.effective_dof.mean()),
        found.certificate,
        target_alphas=found.alphas if section.per_target else None,
    )
    return Solved(solution, path, total, 0.0, scores=scores)


def _by_blocks(store: Store, section: SolveSection, folds: Mapping[int, Statistic], total: Statistic) -> Solved:
    if section.choose_by == "gcv" or section.per_target or section.one_standard_error:
        msg = f"choose_by {section.choose_by!r}, per_target {section.per_target} with blocks"
        raise SolveError(msg, "choose_by 'kfold' or 'evidence'", "alphas of blocks are shared by all targets")
    blocks = blocks_of(store, section.blocks)
    choice = choose_banded(
        folds if section.choose_by == "kfold" else total,
        blocks,
        criterion=section.choose_by,
        fit_intercept=section.fit_intercept,
    )
    found = choice.solution
    finite = [alpha for alpha in found.alphas.values() if 0 < alpha < np.inf]
    solution = Solution(
        found.weights,
        found.intercept,
        float(np.exp(np.mean(np.log(finite)))) if finite else 0.0,
        found.method,
        found.rank,
        float(sum(found.effective_dof.values())),
        found.certificate,
        block_alphas=found.alphas,
    )
    return Solved(solution, None, total, 0.0, banded=choice, parts=contributions(total, found))


def _show(solved: Solved, section: SolveSection, n_folds: int, console: Console) -> None:
    solution, certificate = solved.solution, solved.solution.certificate
    log.info("event=solve alpha=%g seconds=%.1f loss=%.10g", solution.alpha, solved.seconds, certificate.loss)
    by = f"{n_folds}-fold cross-validation" if section.choose_by == "kfold" else section.choose_by
    rule = ", one standard error" if section.one_standard_error else ""
    many = len(section.alphas) > 1 or solved.banded
    chosen = f" ({f'of {len(section.alphas)}, ' if not solved.banded else ''}by {by}{rule})" if many else ""
    text = f"alpha {solution.alpha:g}"
    if solution.target_alphas is not None:
        low, high = solution.target_alphas.min(), solution.target_alphas.max()
        text = f"an alpha for each target, {low:g} to {high:g}"
    if solved.banded is not None:
        text = "an alpha for each block"
    say(console, f"solved with {text}{chosen} in {solved.seconds:.1f} s")
    if solved.banded is not None and solved.parts is not None:
        for line in (*solved.banded.lines(), *solved.parts.lines()):
            say(console, "  " + line)
    scored = solved.scores is not None and section.choose_by == "gcv" and not section.per_target
    edge = scored and solution.alpha in (min(section.alphas), max(section.alphas))
    if (solved.path is not None and solved.path.at_edge and not section.per_target) or edge:
        say(console, "the best alpha is at the edge of the grid: widen `alphas`", "yellow")
    for line in certificate.lines():
        say(console, "  " + line, "dim")
