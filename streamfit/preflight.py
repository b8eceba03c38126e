"""What would stop a run, found before its pass; a run and its forecast ask the same. Floor 7."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamfit.config import LanguageProblem, Problem, RidgeProblem
from streamfit.config_corpus import TextSection
from streamfit.errors import MismatchError, PlanError
from streamfit.plan import Plan
from streamfit.readers import asked_of, reader_of
from streamfit.store import Store
from streamfit.tables import Block, settings_of
from streamfit.text import tokenizer_id
from streamfit.text.topic import DECAYS


def store_of(problem: Problem) -> str:
    """Where a problem keeps its sums."""
    return problem.store.at or str(Path(problem.run) / "store")


def blocks_of(problem: RidgeProblem) -> list[Block]:
    """Blocks of features that a problem asks for."""
    return [Block(section.kind, section.n, section.gamma) for section in problem.features]


def refuse_hopeless(problem: Problem, worker_memory: int | None = None) -> None:
    """Find before anything is made what would stop the run after its pass: a grid without folds, no validation text.

    Parameters
    ----------
    problem : Problem
    worker_memory : int, optional
        Bytes of a worker, where that is known.

    Raises
    ------
    PlanError
        If several alphas are to be chosen from and all rows are in one fold; or so many features were asked for that
        their sums alone have no room.
    CorpusError
        If there are no rows, or no documents to validate on.
    """
    corpus, path = problem.corpus, store_of(problem)
    source = problem.table() if isinstance(problem, RidgeProblem) else problem.corpus.documents("train")
    shards = source.shards()
    counted = list(Store(path).counted().values()) if Store.exists(path) else []
    folds = {shard.fold(problem.solve.folds) for shard in (*shards, *counted)}
    if shards and len(problem.solve.alphas) > 1 and len(folds) < 2:
        msg = f"a grid of alphas, but {len({s.content_id for s in shards})} shard(s), all in one fold"
        remedy = "set `alphas = [1.0]`, or cut the corpus finer: more files or row groups, or a smaller shard_bytes"
        raise PlanError(msg, "at least two folds to cross-validate", remedy)
    if isinstance(corpus, TextSection):
        corpus.documents("validation").shards()
    if isinstance(problem, RidgeProblem) and problem.hashed() is None and worker_memory is not None:
        _least_plan(problem, problem.table().row_item).within(worker_memory).check(
            worker_memory, None, problem.solve.folds
        )


def _least_plan(problem: RidgeProblem, row_item: int) -> Plan:
    """What features take at least, whatever lists, categories and maps of features add: to plan they must be chosen."""
    n_inputs = len(problem.corpus.features)
    n_targets = problem.corpus.n_classes or len(problem.corpus.target)
    return Plan(
        groups=(),
        n_features=sum(n_inputs if section.kind == "linear" else section.n for section in problem.features),
        n_targets=n_targets,
        n_inputs=n_inputs,
        precision=problem.precision,
        one_hot=problem.corpus.n_classes is not None,
        n_workers=1,
        feature_bytes=0,
        triangle=problem.statistic == "qr",
        row_item=row_item,
        identity=all(section.kind == "linear" for section in problem.features),
        in_pieces=[section.kind for section in problem.features] in (["rbf"], ["fourier"])
        and problem.statistic != "qr",
    )


_BEFORE = {"topic_dims": 0, "topic_decay": 0.99, "topic_window": 256, "n_fourier": 0, "fourier_decays": [*DECAYS]}
"""What holds of stores that were made before there were topics, or Fourier features of texts."""


def refuse_other_features(problem: LanguageProblem, store: Store) -> None:
    """What a config says of features must hold of a store that it was not written for, whose features are frozen.

    Raises
    ------
    MismatchError
        Naming what differs.
    """
    wanted = json.loads(json.dumps(problem.features.model_dump(include=problem.features.model_fields_set)))
    if "tokenizer" in wanted:
        wanted["tokenizer"] = tokenizer_id(wanted["tokenizer"])
    found = {"tokenizer": "bpe", **_BEFORE, **store.header.reader.get("settings", {})}
    _refuse_others(store, wanted, found, "correct [features], or leave it out")


def refuse_other_settings(problem: Problem, store: Store) -> None:
    """Features are not chosen again from a corpus that may have grown; it is the choices that must agree."""
    if isinstance(problem, LanguageProblem):
        chosen = json.loads(json.dumps(asdict(problem.settings())))
        chosen["tokenizer"] = tokenizer_id(chosen["tokenizer"])
        wanted: dict[str, Any] = {"kind": "tokens", **chosen, **problem.reading()}
    else:
        settings = settings_of(
            blocks_of(problem), problem.precision, problem.solve.folds, problem.seed, problem.sample_rows
        )
        wanted = {"hashed": None, **reader_of(problem.table()), **settings}
        if problem.statistic != "auto" or store.header.statistic == "qr":
            wanted["statistic"] = "gram" if problem.statistic == "auto" else problem.statistic
    reader = asked_of(store.header.reader)
    found = {
        "tokenizer": "bpe",
        **_BEFORE,
        **reader,
        **reader.get("settings", {}),
        "statistic": store.header.statistic,
    }
    wanted["count_rows"] = problem.count_rows
    found["count_rows"] = "always" if store.header.counted else "never"
    if problem.count_rows == "auto":  # decided when the store was made
        found["count_rows"] = "auto"
    _refuse_others(store, wanted, found, "set another `run`, or restore the config")


def _refuse_others(store: Store, wanted: dict[str, Any], found: dict[str, Any], remedy: str) -> None:
    """Refuse what a config wants of a store that was made with something else, by name."""
    if differ := [name for name, value in wanted.items() if found.get(name) != value]:
        was, now = (", ".join(f"{name} = {each.get(name)!r}" for name in differ) for each in (found, wanted))
        msg = f"{store.place} was made with {was}"
        raise MismatchError(msg, f"{now} as in the config", remedy)
