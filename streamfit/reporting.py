"""The report of a run or of a store: everything that its sums say, and some held-out rows. Floor 7."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from rich.console import Console

from streamfit.config import LanguageProblem, SolveSection, load_problem
from streamfit.corpus import Documents
from streamfit.engine import say
from streamfit.errors import CorpusError
from streamfit.held_out import evaluate_documents, held_out
from streamfit.history import passes_of
from streamfit.jobs import build_model, licence_of
from streamfit.models import read_model
from streamfit.report import Report, sections
from streamfit.report.held_out import read_held_out
from streamfit.solving import Solved, solve_store
from streamfit.store import Store
from streamfit.stores import open_any, reader_of
from streamfit.text import LanguageModel, Sampling, explain, generate_text, origins_of
from streamfit.text.contexts import Windows

PROMPTS = ("",)
_CALIBRATED = 4096
"""Held-out tokens that calibration is measured on."""
_LETTERS = 4_000_000
"""Of held-out text that these tokens are drawn from."""
_SHOWN = 200
"""Letters of a held-out text whose next token is explained, where no prompt is given."""


def report_of(
    where: str,
    section: SolveSection,
    client: Client | None,
    console: Console,
    *,
    rows: int = 20_000,
    prompts: tuple[str, ...] = PROMPTS,
    tokens: int = 60,
) -> Report:
    """Solve a store and make its report.

    Parameters
    ----------
    where : str
        A store, or the folder of a run.
    section : SolveSection
    client : distributed.Client or None
        Evaluates language models.
    console : rich Console
    rows : int
        Rows that are read for residuals and calibration; with 0 nothing is read.
    prompts : tuple of str
        A language model continues each.
    tokens : int
        Length of these samples.

    Raises
    ------
    StreamfitError
        As `solve_store`.
    """
    store, run = open_any(where), Path(where)
    solved = solve_store(store, section, console)
    tokenized = store.header.reader.get("kind") == "tokens"
    kind = "a language model" if tokenized else "a linear model"
    report = Report(f"streamfit: {kind}, {run.name or where}")
    report.text(
        f"Made from commit {store.head().sequence:,} of {store.place}. Figures and numbers come from its sums; where"
        " rows were read, it is said."
    )
    sections.add_data(report, store, _licence(run))
    sections.add_passes(report, passes_of(run), {"solve": solved.seconds})
    sections.add_alpha(report, solved)
    sections.add_certificate(report, solved)
    sections.add_learning_curve(report, store, solved, fit_intercept=section.fit_intercept)
    sections.add_features(report, store, solved, fit_intercept=section.fit_intercept)
    if rows and tokenized:
        _add_language(report, store, run, solved, client, prompts, tokens, rows)
    elif rows:
        _add_residuals(report, store, solved, section, rows, console)
    sections.add_segments(report, store)
    return report


def _licence(run: Path) -> str:
    """What the run's model says of its data, or else its config."""
    if not (run / "model" / "model.json").is_file():
        return licence_of(run)
    spec = read_model(run / "model")[0]
    data: dict[str, Any] = (spec.get("network") or spec).get("info", {}).get("data", {})
    return str(data.get("licence") or licence_of(run))


def _add_residuals(
    report: Report, store: Store, solved: Solved, section: SolveSection, rows: int, console: Console
) -> None:
    solution = solved.solution
    if solution.target_alphas is not None or solution.block_alphas is not None:
        say(console, "no residuals: they are of one alpha, and here there are several", "dim")
        return
    try:
        found = read_held_out(
            store, reader_of(store, None), solution.alpha, fit_intercept=section.fit_intercept, rows=rows
        )
    except CorpusError as error:
        say(console, f"no residuals: {error}", "yellow")
        return
    if found is not None:
        sections.add_residuals(report, found, solution.alpha)


def _add_language(
    report: Report,
    store: Store,
    run: Path,
    solved: Solved,
    client: Client | None,
    prompts: tuple[str, ...],
    tokens: int,
    rows: int,
) -> None:
    """Scores, samples and calibration on the test part of a run's corpus."""
    if not (run / "problem.json").is_file():
        return
    problem = load_problem(run / "problem.json")
    assert isinstance(problem, LanguageProblem)
    model = build_model(problem, store, solved)
    assert isinstance(model, LanguageModel)
    documents = held_out(store, problem.corpus.documents("test"))
    texts = _some_texts(documents)
    sections.add_scores(report, evaluate_documents(model, documents, client))
    how = Sampling(tokens, temperature=0.8, top_p=0.9)
    sections.add_samples(report, {prompt: "".join(generate_text(model, prompt, how)) for prompt in prompts})
    sections.add_reliability(report, *_confidence(model, texts, min(rows, _CALIBRATED)))
    asked = [prompt for prompt in prompts if prompt] or [text[: len(text) // 2][:_SHOWN] for text in texts[:1]]
    origins = [] if model.network is None else origins_of(model.network.info)
    sections.add_explanations(report, [explain(model, prompt, origins=origins) for prompt in asked])


def _some_texts(documents: Documents) -> list[str]:
    """Held-out documents in random order, as many as are looked through for tokens."""
    shards = documents.shards()
    texts: list[str] = []
    for index in np.random.default_rng(0).permutation(len(shards)):
        texts += documents.documents(shards[index])
        if sum(map(len, texts)) > _LETTERS:
            break
    return texts


def _confidence(model: LanguageModel, texts: list[str], rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the most probable token, and whether it came, at random rows of held-out documents."""
    windows = Windows(model.tokenizer.encode(texts), model.n_context)
    some = np.sort(np.random.default_rng(0).permutation(len(windows))[:rows])
    confidence, hits = [], []
    for part in np.array_split(some, -(-len(some) // model.batch_rows)):
        p = model.distribution(windows[part])
        best = p.argmax(axis=1)
        confidence.append(p[np.arange(len(best)), best])
        hits.append(best == windows.tokens[part])
    return np.concatenate(confidence), np.concatenate(hits)
