"""A small language model of some modules of the standard library, made once a process and as large ones are made."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from rich.console import Console

from streamfit.config import LanguageProblem
from streamfit.engine import Machine
from streamfit.jobs import Fitted, fit
from streamfit.text import LanguageModel

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
