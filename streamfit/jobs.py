"""The jobs that the command line and the pipelines are made of: each a few calls of the floors below.

Floor 7. A run is a folder: `store/` with the sums (unless the config puts them elsewhere), `model/` with the last
solve, `problem.json` and `machine.json` to resume it, and `streamfit.log`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from distributed import Client
from rich.console import Console

from streamfit.config import LanguageProblem, Problem, load_problem
from streamfit.corpus import Source
from streamfit.engine import Machine, RunSummary, WorkOptions, accumulate, bands_of, hashing_on, say
from streamfit.errors import ConfigError, StoreError
from streamfit.held_out import HeldOutScore, held_out, refuse_unreadable, score_held_out
from streamfit.history import note_pass
from streamfit.models import LinearModel
from streamfit.moments import Moments
from streamfit.preflight import blocks_of, refuse_hopeless, refuse_other_settings, store_of
from streamfit.provenance import provenance_of
from streamfit.readers import frozen_by
from streamfit.solve import Posterior, posterior
from streamfit.solving import Solved, refuse_choice, solve_out_of_core, solve_store
from streamfit.store import Header, Mix, Store
from streamfit.tables import prepare_table
from streamfit.text import LanguageModel, assemble, prepare, token_source

log = logging.getLogger("streamfit")
_SOLVE_SHARE = 0.8
"""Of the memory that is free, for the solve of a Gram matrix that was summed in panels."""


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Parameters
    ----------
    store : Store
    summary : RunSummary
    solved : Solved
    model : LinearModel or LanguageModel
    held_out : HeldOutScore, optional
        Of a language model.
    """

    store: Store
    summary: RunSummary
    solved: Solved
    model: LinearModel | LanguageModel
    held_out: HeldOutScore | None = None


def fit(
    problem: Problem,
    machine: Machine,
    client: Client | None,
    console: Console,
    *,
    skip_bad_shards: bool = False,
) -> Fitted:
    """Run a problem from corpus to model. Run again, it continues where it was stopped.

    Parameters
    ----------
    problem : Problem
    machine : Machine
    client : distributed.Client or None
        Connected to the machine; None works in this process.
    console : rich Console
    skip_bad_shards : bool

    Raises
    ------
    StreamfitError
        Any of its kinds; what was committed stays.
    """
    with logged(Path(problem.run)), hashing_on(client, console):
        refuse_hopeless(problem, machine.worker_memory)
        if isinstance(problem, LanguageProblem) and not skip_bad_shards:
            refuse_unreadable(problem.corpus.documents("validation"))
        if not (Path(problem.run) / "problem.json").is_file():
            remember(problem, machine)  # choosing features takes a while, and `resume` is to know of the run by then
        store = open_store(problem, console, skip_bad_shards=skip_bad_shards)
        remember(problem, machine)
        source = training_source(problem, store)
        if bands_of(store, machine.worker_memory, machine.threads, source) > 1:
            refuse_choice(problem.solve)  # now, and not after the pass
        summary = accumulate_into(store, source, machine, client, console,
                                  group_rows=problem.group_rows, skip_bad_shards=skip_bad_shards)  # fmt: skip
        note_pass(Path(problem.run), summary, store.header.n_folds)
        if summary.plan.n_bands > 1:
            memory = int(_SOLVE_SHARE * psutil.virtual_memory().available)
            solved = solve_out_of_core(store, problem.solve, memory, None, console)
        else:
            solved = solve_store(store, problem.solve, console, backend=machine.solve_backend)
        model = build_model(problem, store, solved, skip_bad_shards=skip_bad_shards)
        model.save(Path(problem.run) / "model")
        log.info("event=model path=%s", Path(problem.run) / "model")
        scored = None
        if isinstance(problem, LanguageProblem) and isinstance(model, LanguageModel):
            scored = score_held_out(problem, store, model, skip_bad_shards=skip_bad_shards)
            for line in scored.lines():
                say(console, line)
        return Fitted(store, summary, solved, model, scored)


def open_store(problem: Problem, console: Console, *, skip_bad_shards: bool = False) -> Store:
    """Open the store of a problem, or freeze its features and make one.

    Raises
    ------
    MismatchError
        If the store there was made with other features.
    """
    path = store_of(problem)
    if Store.exists(path):
        store = Store(path)
        refuse_other_settings(problem, store)
        return store
    say(console, "choosing features from a sample", "dim")
    started = time.perf_counter()
    kept = problem.store
    header = new_header(problem, skip_bad_shards, lambda line: say(console, line, "dim"))
    store = Store.create(path, header, max_live=kept.max_live, keep=kept.keep)
    log.info("event=features seconds=%.1f", time.perf_counter() - started)
    return store


def new_header(problem: Problem, skip: bool, report: Callable[[str], None]) -> Header:
    """Features chosen from a sample of a problem's rows, and how these are read: what a store is made with."""
    if isinstance(problem, LanguageProblem):
        documents = problem.corpus.documents("train")
        return prepare(documents, problem.settings(), reading=problem.reading(), skip_bad_shards=skip,
                       count_rows=problem.count_rows, report=report)  # fmt: skip
    return prepare_table(
        problem.table(),
        blocks_of(problem),
        precision=problem.precision,
        n_folds=problem.solve.folds,
        seed=problem.seed,
        sample_rows=problem.sample_rows,
        skip_bad_shards=skip,
        statistic=problem.statistic,
        count_rows=problem.count_rows,
        report=report,
    )


def training_source(problem: Problem, store: Store) -> Source:
    """The rows of a problem, read the way its store says."""
    if isinstance(problem, LanguageProblem):
        return token_source(store.header, problem.corpus.documents("train"))
    return frozen_by(problem.table(), store.header.reader)


def accumulate_into(
    store: Store,
    source: Source,
    machine: Machine,
    client: Client | None,
    console: Console,
    *,
    group_rows: int | None = None,
    skip_bad_shards: bool = False,
    replace_changed: bool = False,
    recount: bool = False,
) -> RunSummary:
    """Count a corpus into a store and say what was done."""
    summary = accumulate(
        store,
        source,
        client=client,
        options=WorkOptions(skip_bad_shards, machine.threads, machine.backend),
        group_rows=group_rows,
        worker_memory=machine.worker_memory,
        console=console,
        replace_changed=replace_changed,
        recount=recount,
    )
    if summary.replaced is not None:
        for left in summary.replaced.departures:
            say(console, f"replaced {left.key}: content {left.content_id[:12]} by {left.replaced_by[:12] or 'nothing'}")
    say(
        console,
        f"counted {summary.n_rows:,} rows of {summary.n_shards:,} shards in {summary.seconds:.1f} s"
        f" ({_rate(summary)}); the store holds {store.head().n_rows:,} rows",
    )
    for again, first in summary.repeats[:3]:
        say(console, f"counted once: {again.key} has the content of {first.key}", "dim")
    if len(summary.repeats) > 3:
        say(console, f"... and {len(summary.repeats) - 3} more repeats", "dim")
    for refusal in summary.refused:
        say(console, f"skipped {refusal.key}: {refusal.reason}", "yellow")
    return summary


def _rate(summary: RunSummary) -> str:
    """Speed of the products; where equal rows are multiplied once, how many are done is known from a sample alone."""
    if not summary.plan.piece_rows:
        return f"{summary.gflops:,.0f} GFLOP/s"
    rows = summary.n_rows / max(summary.seconds, 1e-9)
    return f"{rows:,.0f} rows/s, about {summary.gflops:,.0f} GFLOP/s, equal rows multiplied once"


def build_model(
    problem: Problem, store: Store, solved: Solved, *, mix: Mix | None = None, skip_bad_shards: bool = False
) -> LinearModel | LanguageModel:
    """The model of a solve; of validation files, too, those that cannot be read may be left out.

    Of a language model the mix weighs n-gram counts as well, as far as `Mix.times` says.
    """
    if isinstance(problem, LanguageProblem):
        validation = held_out(store, problem.corpus.documents("validation"), skip_bad_shards=skip_bad_shards)
        model = assemble(store, solved.solution, validation, experts=problem.experts(), mix=mix)
        data = {"data": provenance_of(store, problem.corpus.licence)}
        if model.network is None:  # counts, with or without a topic
            head = store.head()
            return replace(model, info={"store": head.commit, "n_rows": head.n_rows, **data})
        return replace(model, network=replace(model.network, info=model.network.info | data))
    return linear_model(store, solved, licence=problem.corpus.licence)


def linear_model(store: Store, solved: Solved, fit_intercept: bool | None = None, *, licence: str = "") -> LinearModel:
    """Features and weights of a solve, with what is needed to read rows for them.

    Parameters
    ----------
    store : Store
    solved : Solved
    fit_intercept : bool, optional
        If given, the model carries its posterior, for standard deviations of predictions; and this is how it was fit.
    licence : str
        Of the rows.

    Raises
    ------
    ConfigError
        If the store counts tokens, or has no posterior: several alphas, or a Gram matrix that is not in memory.
    """
    if store.header.reader.get("kind") == "tokens":
        msg = f"a linear model of {store.place}, which counts tokens"
        raise ConfigError(msg, "a store of a table", "`streamfit fit` or `resume` make language models")
    head = store.head()
    info = {"reader": store.header.reader, "n_rows": head.n_rows, "commit": head.commit}
    info["data"] = provenance_of(store, licence)
    if solved.path is not None:
        info |= solved.path.to_json()
    model = LinearModel(store.header.features, solved.solution, info)
    return model if fit_intercept is None else replace(model, posterior=_posterior_of(solved, fit_intercept))


def _posterior_of(solved: Solved, fit_intercept: bool) -> Posterior:
    solution = solved.solution
    several = solution.target_alphas is not None or solution.block_alphas is not None
    if several or not isinstance(solved.moments, Moments):
        msg = (
            "the posterior of several alphas" if several else "the posterior of sums other than a Gram matrix in memory"
        )
        raise ConfigError(msg, "one alpha, and a dense Gram matrix", "leave out --std")
    return replace(posterior(solved.moments, solution.alpha, fit_intercept=fit_intercept), solution=solution)


def licence_of(where: str | Path) -> str:
    """Licence that a run's config states for its data; empty of a bare store."""
    path = Path(where) / "problem.json"
    return "" if "://" in str(where) or not path.is_file() else load_problem(path).corpus.licence


def remember(problem: Problem, machine: Machine) -> None:
    """Keep what `resume` needs, with paths that hold from any directory."""
    run = Path(problem.run)
    corpus, kept_at = problem.corpus, problem.store
    if kept_at.at and "://" not in kept_at.at:
        kept_at = kept_at.model_copy(update={"at": str(Path(kept_at.at).expanduser().absolute())})
    kept = problem.model_copy(update={"run": str(run.absolute()), "corpus": corpus.absolute(), "store": kept_at})
    if isinstance(kept, LanguageProblem) and kept.features.tokenizer.endswith(".json"):
        path = str(Path(kept.features.tokenizer).expanduser().absolute())
        kept = kept.model_copy(update={"features": kept.features.model_copy(update={"tokenizer": path})})
    for name, text in (
        ("problem.json", kept.model_dump_json(indent=1)),
        ("machine.json", json.dumps(machine.to_json(), indent=1)),
    ):
        partial = run / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(run / name)


@contextmanager
def logged(run: Path) -> Iterator[None]:
    """Append this package's log lines to `streamfit.log` in the run's folder.

    Raises
    ------
    StoreError
        If the folder cannot be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(run / "streamfit.log", encoding="utf-8")
    except OSError as error:
        msg = f"cannot write to {run}: {error.strerror}"
        raise StoreError(msg, "a writable folder", "set another `run` in the config") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        handler.close()
