"""Fitting tables of numbers: features from a sample before the pass, scores on rows after the solve. Floor 6."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from streamfit.arrays import Precision
from streamfit.corpus import ParquetTable, Rows
from streamfit.corpus.freezing import frozen, types_of
from streamfit.corpus.table import Table
from streamfit.counted import piece_rows
from streamfit.density import Density
from streamfit.errors import ConfigError, CorpusError, ShardError
from streamfit.features import (
    RBF,
    Chain,
    FeatureMap,
    Hashed,
    Linear,
    Nystroem,
    RandomFourier,
    Standardize,
    choose_centers,
    median_gamma,
)
from streamfit.frame import Frame
from streamfit.models import LinearModel
from streamfit.readers import asked, no_rows, reader_of
from streamfit.repeats import CountChoice, CountRows, choose_counting
from streamfit.sparse_moments import sparse_frame
from streamfit.sparse_sample import spread_sample
from streamfit.store import Header, StatisticKind
from streamfit.targets import Dense, OneHot

BlockKind = Literal["linear", "rbf", "fourier", "nystroem", "hashed"]


@dataclass(frozen=True)
class Block:
    """One block of features.

    Parameters
    ----------
    kind : {'linear', 'rbf', 'fourier', 'nystroem', 'hashed'}
    n : int
        Centers, frequencies or hashed columns; without effect on a linear block, which has the table's columns.
    gamma : float, optional
        Without it 1 / median squared distance of the standardised sample.

    Raises
    ------
    ConfigError
        If there is no such kind, or a number is out of range.
    """

    kind: BlockKind
    n: int = 256
    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(BlockKind):
            msg = f"a block of features of kind {self.kind!r}"
            raise ConfigError(msg, f"one of {', '.join(get_args(BlockKind))}")
        if self.n < 1 or not (self.gamma is None or self.gamma > 0):
            msg = f"a block of {self.kind} features with n = {self.n} and gamma = {self.gamma}"
            raise ConfigError(msg, "n at least 1, and gamma above 0 or None")


def prepare_table(
    source: ParquetTable | Table,
    blocks: Sequence[Block],
    *,
    precision: Precision,
    n_folds: int,
    seed: int,
    sample_rows: int,
    skip_bad_shards: bool = False,
    statistic: StatisticKind | Literal["auto"] = "auto",
    count_rows: CountRows = "never",
    report: Callable[[str], None] = lambda _: None,
) -> Header:
    """Choose centers, widths and units from a sample, and freeze them as a store's header.

    With `statistic` 'auto' hashed features get a sparse or a dense Gram matrix, whichever the sample says will be the
    smaller of the two once all rows are counted, and others a dense one. With `count_rows` other than 'never' some
    shards of dense rows are read whole, to see how many of their rows are equal; `report` is told what was decided.
    What the source's recipe leaves open is found first, in one pass over the columns in question; to count rows, read
    them by `streamfit.readers.frozen_by`.

    Raises
    ------
    ConfigError
        If hashed features are not alone, or their rows are to be counted; or the source does not hash.
    ShardError
        If a sampled shard cannot be read and is not skipped.
    CorpusError
        If there are no rows.
    """
    settings = settings_of(blocks, precision, n_folds, seed, sample_rows)
    open_parts, source = asked(source), frozen(source, skip_bad_shards=skip_bad_shards)
    reader = reader_of(source) | open_parts | {"settings": settings}
    if types := types_of(source):
        reader["types"] = types
    if source.hashed is not None:
        _refuse_other_blocks(source.hashed, blocks)
        if count_rows == "always":
            msg = "count_rows = 'always' with hashed features"
            raise ConfigError(msg, "'auto' or 'never'", "sparse rows are multiplied each by itself")
        x, y, weights = spread_sample(source, sample_rows, seed, skip=skip_bad_shards)
        targets = OneHot(source.n_classes) if source.n_classes else Dense(y.shape[1])
        density = Density.of(x)
        if statistic == "auto":
            n_rows = sum(shard.planned_rows for shard in source.shards())
            statistic = "sparse" if density.sparse_is_smaller(n_rows, precision) else "gram"
        return Header(
            features=source.hashed,
            targets=targets,
            frame=sparse_frame(x, y, targets, weights),
            precision=precision,
            n_folds=n_folds,
            reader=reader | {"density": density.to_json()},
            statistic=statistic,
        )
    x, y, weights = _sample(source, sample_rows, seed, skip_bad_shards)
    maps = [_map(block, x, seed + i) for i, block in enumerate(blocks)]
    features = maps[0]
    for another in maps[1:]:
        features = features + another
    targets = OneHot(source.n_classes) if source.n_classes else Dense(y.shape[1])
    choice, line = _choose_counting(
        "never" if statistic == "qr" and count_rows == "auto" else count_rows,
        source,
        seed,
        x.shape[1],
        skip_bad_shards,
        n_features=features.n_features,
        n_targets=targets.n_targets,
        one_hot=targets.one_hot,
        weighted=weights is not None,
    )
    report(line)
    return Header(
        features=features,
        targets=targets,
        frame=Frame.from_sample(features(x), y, targets, features.bounds, weights),
        precision=precision,
        n_folds=n_folds,
        reader=reader | ({"counting": choice.to_json()} if choice.counted else {}),
        statistic="gram" if statistic == "auto" else statistic,
        counted=choice.counted,
    )


def _refuse_other_blocks(hashed: Hashed, blocks: Sequence[Block]) -> None:
    if [(block.kind, block.n) for block in blocks] != [("hashed", hashed.n)]:
        msg = f"blocks {', '.join(block.kind for block in blocks)} of rows hashed into {hashed.n} columns"
        raise ConfigError(msg, "one block of kind 'hashed'", "numbers can be hashed beside names")


def settings_of(
    blocks: Sequence[Block], precision: Precision, n_folds: int, seed: int, sample_rows: int
) -> dict[str, Any]:
    """What was chosen before the pass, as a header keeps it."""
    chosen = {"precision": precision, "n_folds": n_folds, "seed": seed, "sample_rows": sample_rows}
    return {"blocks": [asdict(block) for block in blocks], **chosen}


def _sample(
    source: ParquetTable | Table, n_rows: int, seed: int, skip: bool
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
                # Copies, for a block may be a view of all rows of its shard.
                weights = None if rows.weights is None else rows.weights[:left].copy()
                parts.append(Rows(rows.x[:left].copy(), rows.y[:left].copy(), weights))
                left -= len(rows.y)
                if left <= 0:
                    break
        except ShardError:
            if not skip:
                raise
    if not parts:
        raise no_rows(source)
    given = [part.weights for part in parts if part.weights is not None]
    weights = np.concatenate(given) if given else None
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), weights


def _choose_counting(
    asked: CountRows, source: ParquetTable | Table, seed: int, n_inputs: int, skip: bool, **sizes: Any
) -> tuple[CountChoice, str]:
    """Decide whether equal rows are multiplied once, and say why.

    Rows that differ in their first columns differ: of wide tables those are read first, and the rest only where
    counting might still pay.
    """
    few = source if isinstance(source, Table) else replace(source, features=source.features[:_SCREEN_COLUMNS])
    if asked == "auto" and len(few.features) < len(source.features):
        screen = choose_counting(asked, _whole_pieces(few, seed, n_inputs, skip), **sizes)
        if not screen.counted:
            return screen, screen.line(f"{len(few.features)} of {len(source.features)} columns")
    choice = choose_counting(asked, _whole_pieces(source, seed, n_inputs, skip), **sizes)
    return choice, choice.line()


def _whole_pieces(source: ParquetTable | Table, seed: int, n_inputs: int, skip: bool) -> Iterator[np.ndarray]:
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
_SCREEN_COLUMNS = 8
"""Columns in which rows of wide tables are compared before they are compared whole."""
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


def score_table(model: LinearModel, source: ParquetTable | Table) -> TableScore:
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
            for lo in range(0, len(block.y), step):
                x, y = block.x[lo : lo + step], block.y[lo : lo + step]
                w = np.ones(len(y)) if block.weights is None else block.weights[lo : lo + step]
                predicted = model.predict(x)
                if source.n_classes:
                    hits += float(w @ (predicted.argmax(axis=1) == y))
                    predicted[np.arange(len(y)), y] -= 1.0  # the error against the indicator, without forming it
                    counts = np.bincount(y, w, source.n_classes)
                    sum_y, sum_yy = sum_y + counts, sum_yy + counts
                else:
                    origin = y[0].astype(np.float64) if origin is None else origin
                    predicted = predicted - y
                    shifted = y - origin  # the variance of targets with a large mean must not cancel
                    sum_y, sum_yy = sum_y + w @ shifted, sum_yy + w @ (shifted * shifted)
                n_rows += len(y)
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
