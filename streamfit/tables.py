"""Fitting tables of numbers: features from a sample before the pass, scores on rows after the solve. Floor 6."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from streamfit.arrays import Precision
from streamfit.corpus import Files, ParquetTable, Rows
from streamfit.counted import piece_rows
from streamfit.errors import CorpusError, MismatchError, ShardError
from streamfit.features import (
    RBF,
    Chain,
    FeatureMap,
    Linear,
    Nystroem,
    RandomFourier,
    Standardize,
    choose_centers,
    median_gamma,
)
from streamfit.frame import Frame
from streamfit.models import LinearModel
from streamfit.repeats import CountRows, choose_counting
from streamfit.store import Header, StatisticKind
from streamfit.targets import Dense, OneHot


@dataclass(frozen=True)
class Block:
    """One block of features.

    Parameters
    ----------
    kind : {'linear', 'rbf', 'fourier', 'nystroem'}
    n : int
        Centers or frequencies; without effect on a linear block, which has the table's columns.
    gamma : float, optional
        Without it 1 / median squared distance of the standardised sample.
    """

    kind: Literal["linear", "rbf", "fourier", "nystroem"]
    n: int = 256
    gamma: float | None = None


def prepare_table(
    source: ParquetTable,
    blocks: Sequence[Block],
    *,
    precision: Precision,
    n_folds: int,
    seed: int,
    sample_rows: int,
    skip_bad_shards: bool = False,
    statistic: StatisticKind = "gram",
    count_rows: CountRows = "never",
    report: Callable[[str], None] = lambda _: None,
) -> Header:
    """Choose centers, widths and units from a sample, and freeze them as a store's header.

    With `count_rows` other than 'never' some shards are read whole, to see how many of their rows are equal; `report`
    is told what was decided.

    Raises
    ------
    ShardError
        If a sampled shard cannot be read and is not skipped.
    CorpusError
        If there are no rows.
    """
    x, y, weights = _sample(source, sample_rows, seed, skip_bad_shards)
    maps = [_map(block, x, seed + i) for i, block in enumerate(blocks)]
    features = maps[0]
    for another in maps[1:]:
        features = features + another
    targets = OneHot(source.n_classes) if source.n_classes else Dense(y.shape[1])
    choice = choose_counting(
        "never" if statistic == "qr" and count_rows == "auto" else count_rows,
        _whole_pieces(source, seed, x.shape[1], skip_bad_shards),
        features.n_features,
        targets.n_targets,
        one_hot=targets.one_hot,
        weighted=weights is not None,
    )
    report(choice.line())
    reader = reader_of(source) | {"settings": settings_of(blocks, precision, n_folds, seed, sample_rows)}
    return Header(
        features=features,
        targets=targets,
        frame=Frame.from_sample(features(x), y, targets, features.bounds, weights),
        precision=precision,
        n_folds=n_folds,
        reader=reader | ({"counting": choice.to_json()} if choice.counted else {}),
        statistic=statistic,
        counted=choice.counted,
    )


def reader_of(source: ParquetTable) -> dict[str, Any]:
    """How rows are read, as a header keeps it."""
    columns = {"features": list(source.features), "target": list(source.target)}
    return {"kind": "table", **columns, "weight": source.weight, "n_classes": source.n_classes}


def settings_of(
    blocks: Sequence[Block], precision: Precision, n_folds: int, seed: int, sample_rows: int
) -> dict[str, Any]:
    """What was chosen before the pass, as a header keeps it."""
    chosen = {"precision": precision, "n_folds": n_folds, "seed": seed, "sample_rows": sample_rows}
    return {"blocks": [asdict(block) for block in blocks], **chosen}


def table_source(reader: dict[str, Any], files: Files, label: str = "table") -> ParquetTable:
    """Another set of files read the way a header or model says.

    Raises
    ------
    MismatchError
        If it was not fitted to a table.
    """
    if reader.get("kind") != "table":
        msg = f"a store or model of {reader.get('kind', 'unknown')} rows"
        raise MismatchError(msg, "one of a table")
    features, target = tuple(reader["features"]), tuple(reader["target"])
    return ParquetTable(files, features, target, reader["weight"], reader["n_classes"], label)


def _sample(
    source: ParquetTable, n_rows: int, seed: int, skip: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """About `n_rows` rows, an equal share of each of some shards chosen at random."""
    shards = source.shards()
    chosen = []
    rows_there = 0
    for index in np.random.default_rng(seed).permutation(len(shards)):
        if rows_there >= _SPREAD * n_rows:
            break
        chosen.append(shards[index])
        rows_there += shards[index].planned_rows
    parts: list[Rows] = []
    for shard in chosen:
        left = -(-shard.planned_rows * n_rows // max(n_rows, rows_there))
        try:
            for rows in source.read(shard):
                if parts and rows.x.shape[1] != parts[0].x.shape[1]:
                    msg = f"{shard.key}: {rows.x.shape[1]} feature columns once lists are spread out"
                    raise ShardError(msg, f"{parts[0].x.shape[1]}, as in other shards", "leave that file out")
                weights = None if rows.weights is None else rows.weights[:left]
                parts.append(Rows(rows.x[:left], rows.y[:left], weights))
                left -= len(rows.x)
                if left <= 0:
                    break
        except ShardError:
            if not skip:
                raise
    if not parts:
        msg = "a corpus without any readable rows"
        raise CorpusError(msg, "at least one row", "check the paths and columns of [corpus]")
    given = [part.weights for part in parts if part.weights is not None]
    weights = np.concatenate(given) if given else None
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), weights


def _whole_pieces(source: ParquetTable, seed: int, n_inputs: int, skip: bool) -> Iterator[np.ndarray]:
    """Inputs of whole shards chosen at random, up to what is looked through at once, until there are enough rows."""
    shards, n_rows = source.shards(), 0
    limit = piece_rows(n_inputs, max(1, len(source.target)))
    for index in np.random.default_rng(seed).permutation(len(shards)):
        if n_rows >= _REPEATS_ROWS:
            return
        parts: list[np.ndarray] = []
        try:
            for rows in source.read(shards[index]):
                parts.append(rows.x)
                if sum(map(len, parts)) >= limit:
                    break
        except ShardError:
            if not skip:
                raise
            continue
        if parts:
            n_rows += sum(map(len, parts))
            yield np.concatenate(parts)


def _map(block: Block, x: np.ndarray, seed: int) -> FeatureMap:
    if block.kind == "linear":
        return Linear(x.shape[1])
    scale = Standardize.fit(x)
    z = scale(x)
    gamma = block.gamma or median_gamma(z, seed)
    if block.kind in ("rbf", "nystroem"):
        kernel = RBF if block.kind == "rbf" else Nystroem
        return Chain(scale, kernel(choose_centers(z, block.n, seed), gamma))
    return Chain(scale, RandomFourier(block.n, gamma, seed, x.shape[1]))


_SPREAD = 4
"""Rows of the shards that a sample is drawn from, for each row drawn."""
_REPEATS_ROWS = 2**17
"""Rows of whole shards that are looked through for equal ones."""
_SCORE_ENTRIES = 2**24
"""Predictions held at a time."""


@dataclass(frozen=True)
class TableScore:
    """Errors on rows of a table.

    Parameters
    ----------
    n_rows : int
    r2 : float
        Share of the variance explained, all targets together.
    rmse : float
        Root of the mean squared error, over rows and targets.
    accuracy : float, optional
        Share of rows whose class had the largest prediction.
    """

    n_rows: int
    r2: float
    rmse: float
    accuracy: float | None


def score_table(model: LinearModel, source: ParquetTable) -> TableScore:
    """Score a model on every row of a table, weights included.

    Raises
    ------
    CorpusError
        If there are no rows.
    """
    weight = error = hits = 0.0
    n_rows = 0
    origin: Any = None
    sum_y: Any = 0.0
    sum_yy: Any = 0.0
    step = max(1, _SCORE_ENTRIES // len(model.solution.intercept))
    for shard in source.shards():
        for block in source.read(shard):
            for lo in range(0, len(block.x), step):
                x, y = block.x[lo : lo + step], block.y[lo : lo + step]
                w = np.ones(len(x)) if block.weights is None else block.weights[lo : lo + step]
                predicted = model.predict(x)
                if source.n_classes:
                    hits += float(w @ (predicted.argmax(axis=1) == y))
                    predicted[np.arange(len(x)), y] -= 1.0  # the error against the indicator, without forming it
                    counts = np.bincount(y, w, source.n_classes)
                    sum_y, sum_yy = sum_y + counts, sum_yy + counts
                else:
                    origin = y[0].astype(np.float64) if origin is None else origin
                    predicted = predicted - y
                    shifted = y - origin  # the variance of targets with a large mean must not cancel
                    sum_y, sum_yy = sum_y + w @ shifted, sum_yy + w @ (shifted * shifted)
                n_rows += len(x)
                weight += float(w.sum())
                error += float(w @ (predicted**2).sum(axis=1))
    if not weight > 0:
        msg = "no rows to evaluate on"
        raise CorpusError(msg, "at least one row with positive weight")
    variance = float(np.sum(sum_yy - sum_y * sum_y / weight))
    n_targets = np.size(sum_y)
    accuracy = hits / weight if source.n_classes else None
    r2 = 1.0 - error / variance if variance > 0 else float("nan")
    return TableScore(n_rows, r2, float(np.sqrt(error / weight / n_targets)), accuracy)
