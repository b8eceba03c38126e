"""A small language model of some modules of the standard library, made once a process and as large ones are made."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from rich.console import Console

from streamfit.config import LanguageProblem
from streamfit.engine import Machine, accumulate
from streamfit.jobs import Fitted, fit
from streamfit.solve import solve
from streamfit.store import Store
from streamfit.text import LanguageModel, assemble, prepare, token_source
from streamfit.text.experts import KINDS, ExpertSettings

NAMES = (
    "abc bisect colorsys contextlib copy enum fnmatch functools glob heapq keyword operator queue random reprlib"
    " sched shlex shutil socket stat string struct tempfile textwrap types typing uuid weakref"
)
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def fitted() -> tuple[LanguageProblem, Fitted]:
    """The problem and its run, in a folder that lasts as long as the process."""
    _KEPT.append(tempfile.TemporaryDirectory())
    problem = LanguageProblem.model_validate(
        {
            "kind": "language_model",
            "run": str(Path(_KEPT[-1].name) / "run"),
            "corpus": {
                "root": "python:stdlib",
                "include": [f"{name}.py" for name in NAMES.split()],
                "exclude": ["*/*", "site-packages"],
                "split": [0.7, 0.15, 0.15],
            },
            "features": {"vocab_size": 500, "n_context": 4, "embedding_dims": 48, "n_centers": 60},
            "solve": {"alphas": [1.0, 100.0], "folds": 2},
        }
    )
    return problem, fit(problem, Machine("serial"), None, Console(quiet=True))


def language() -> LanguageModel:
    """The model alone."""
    model = fitted()[1].model
    assert isinstance(model, LanguageModel)
    return model


def folder() -> Path:
    """Where the model was saved, its run's store beside it."""
    return Path(fitted()[0].run) / "model"


@cache
def many_experts() -> LanguageModel:
    """A model of the same text with every expert there is, and a topic."""
    problem, _ = fitted()
    settings = replace(
        problem.settings(), topic_dims=8, topic_window=12, n_fourier=24, vocab_size=300, n_centers=20
    )  # fmt: skip
    documents = problem.corpus.documents("train")
    store = Store.create(Path(problem.run).parent / "many", prepare(documents, settings))
    accumulate(store, token_source(store.header, documents))
    solution = solve(store.moments(), 10.0)
    experts = ExpertSettings(KINDS, classes=(20, 60), class_dims=10)
    return assemble(store, solution, problem.corpus.documents("validation"), experts=experts, n_rows=3000)


MODELS = {"two experts": language, "many experts": many_experts}


def benchmark_text(folder: Path) -> Path:
    """Train, validation and test text of words by a power law, in a folder as that of WikiText-2."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, n_lines in (("train", 1500), ("valid", 250), ("test", 250)):
        lines = [" ".join(f"w{w}" for w in rng.zipf(1.3, 12) % 400) for _ in range(n_lines)]
        (folder / f"{part}.txt").write_text("\n".join(lines))
    return folder
