"""One more pass over the rows that a store counted: refining a solution, leave-one-out errors. Floor 7."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
from distributed import Client
from rich.console import Console

from streamfit.engine import Machine, WorkOptions, progressing, say, visit
from streamfit.errors import ConfigError, SolveError
from streamfit.moments import Moments
from streamfit.solve import (
    Certificate,
    LeaveOneOutPass,
    Press,
    Refinement,
    Solution,
    decompose,
)
from streamfit.solving import Solved
from streamfit.sparse_moments import SparseMoments
from streamfit.store import Store
from streamfit.stores import locate, reader_of

log = logging.getLogger("streamfit")
_ARRIVED = 1e-15
"""Gradient relative to the cross products that is no more than rounding."""


@dataclass(frozen=True)
class Refined:
    """Weights after passes over the rows.

    Parameters
    ----------
    solution : Solution
        Those of the least gradient of all that were measured; its certificate is of the data.
    certificates : tuple of Certificate
        One a pass, each of the data: the first of the weights that the stored sums gave.
    seconds : float
    """

    solution: Solution
    certificates: tuple[Certificate, ...]
    seconds: float


def refine_store(
    store: Store,
    solved: Solved,
    machine: Machine,
    client: Client | None,
    console: Console,
    *,
    fit_intercept: bool = True,
    passes: int = 2,
    corpus: str | None = None,
) -> Refined:
    """Measure a solution on the rows themselves, and correct it with the stored sums; see `Refinement`.

    Each pass measures the gradient of the data in float64; between passes weights are corrected. So one pass only
    certifies, two correct once and certify what came of it.

    Parameters
    ----------
    store : Store
    solved : Solved
    machine, client, console
        Where to work, and what to show it on.
    fit_intercept : bool
        As it was solved.
    passes : int
        At least 1.
    corpus : str, optional
        Where the corpus lies now, if it was moved.

    Raises
    ------
    SolveError
        If the solution has several alphas, or sums of a triangle.
    ShardError
        If rows are no longer what was counted.
    """
    solution, moments = solved.solution, solved.moments
    if passes < 1:
        msg = f"{passes} passes"
        raise ConfigError(msg, "at least 1")
    if isinstance(moments, SparseMoments):
        msg = "refining a fit of sparse sums"
        raise SolveError(msg, "statistic 'gram'", "products of sparse rows are taken in float64 already")
    if solution.target_alphas is not None or solution.block_alphas is not None or not isinstance(moments, Moments):
        msg = "refining a fit with several alphas, or of a triangle"
        raise SolveError(msg, "one alpha for exact sums", "a triangle has no rounding to be corrected")
    c, where = moments.centered(), locate(store, corpus) if corpus else {}
    source = reader_of(store, corpus)
    refinement = Refinement(c, solution.alpha, solution, fit_intercept=fit_intercept)
    best, seconds = solution, 0.0
    certificates: list[Certificate] = []
    for number in range(passes):
        with progressing(console, f"pass {number + 1}", c.n_rows) as report:
            gradient, took = visit(
                store,
                source,
                refinement.walk,
                where=where,
                client=client,
                options=WorkOptions(n_threads=machine.threads, backend=machine.backend),
                report=report,
            )
        certificate = refinement.measure(gradient)
        seconds += took
        certificates.append(certificate)
        log.info("event=refine pass=%d gradient=%.3g bound=%.3g", number + 1, *_sizes(certificate))
        say(
            console,
            f"pass {number + 1} in {took:.1f} s: relative gradient {certificate.relative_gradient:.2e},"
            f" loss - optimum <= {certificate.suboptimality:.2e}",
        )
        if certificate.relative_gradient <= min(x.relative_gradient for x in certificates):
            best = replace(refinement.solution, certificate=certificate)
        if certificate.relative_gradient <= _ARRIVED:
            break
        if number + 1 < passes:
            refinement.correct()
    for line in best.certificate.lines("of the data"):
        say(console, "  " + line, "dim")
    return Refined(best, tuple(certificates), seconds)


def _sizes(certificate: Certificate) -> tuple[float, float]:
    return certificate.relative_gradient, certificate.suboptimality


def leave_one_out_store(
    store: Store,
    alphas: tuple[float, ...],
    machine: Machine,
    client: Client | None,
    console: Console,
    *,
    fit_intercept: bool = True,
    corpus: str | None = None,
) -> Press:
    """Exact leave-one-out errors of each alpha, by one pass over the rows; see `LeaveOneOut`.

    Parameters
    ----------
    store : Store
    alphas : tuple of float
        Nonnegative.
    machine, client, console, fit_intercept, corpus
        As for `refine_store`.
    """
    moments = store.moments()
    spectrum = decompose(moments, fit_intercept=fit_intercept, smallest_alpha=min(alphas))
    where = locate(store, corpus) if corpus else {}
    with progressing(console, "leave-one-out", moments.n_rows) as report:
        press, _ = visit(
            store,
            reader_of(store, corpus),
            LeaveOneOutPass.of(spectrum, np.array(alphas)),
            where=where,
            client=client,
            options=WorkOptions(n_threads=machine.threads, backend=machine.backend),
            report=report,
        )
    found: Press = press
    return found
