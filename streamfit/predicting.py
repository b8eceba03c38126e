"""Predictions of a data set into a data set, a piece of it on each worker. Floor 7."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from distributed import Client

from streamfit.corpus import Files
from streamfit.corpus.choosing import lacking
from streamfit.corpus.dataset import Partitions, path_values
from streamfit.corpus.encode import features_of
from streamfit.corpus.hashed_rows import check_hashable, hashed_rows
from streamfit.corpus.openings import listed
from streamfit.corpus.parquet_rows import Batch
from streamfit.corpus.recipe import Recipe, date_part
from streamfit.corpus.row_ranges import without_views
from streamfit.corpus.text_formats import type_of
from streamfit.corpus.values import column_of
from streamfit.engine import n_workers
from streamfit.errors import ConfigError, MismatchError, ShardError
from streamfit.features import Hashed
from streamfit.frame import BLOCK_ROWS
from streamfit.models import LinearModel
from streamfit.plan import Shard
from streamfit.table_files import ending_of, pieces_of, told, whole_folder, writing

_AHEAD = 2
"""Pieces a worker that are asked for before their predictions are written."""


class Predicted(NamedTuple):
    """What came of a data set.

    Parameters
    ----------
    n_rows, n_pieces : int
    n_empty : int
        Rows that lack a feature, whose predictions are null.
    """

    n_rows: int
    n_pieces: int
    n_empty: int


@dataclass(frozen=True)
class Predictor:
    """What is made of each batch of rows.

    Parameters
    ----------
    model : LinearModel
    keep : tuple of str
        Columns of the rows that stand beside their predictions.
    std : bool
        Standard deviations as well; the model must carry its posterior.
    scores : bool
        The prediction for each class as well.
    """

    model: LinearModel
    keep: tuple[str, ...] = ()
    std: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        reader = self.model.info.get("reader", {})
        if reader.get("kind") != "table":
            msg = "a model that does not say how rows of a table are read"
            raise MismatchError(msg, "one that `streamfit fit` or `solve` wrote")
        if self.std and self.model.posterior is None:
            msg = "standard deviations by a model without its posterior"
            raise MismatchError(msg, "one that carries it", "save it by `streamfit solve --std`")
        if self.scores and not reader.get("n_classes"):
            msg = "scores of a model that has no classes"
            raise ConfigError(msg, "a model of classes", "leave out --scores: its predictions are numbers")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Feature columns, as the model names them."""
        return tuple(self.model.info["reader"]["features"])

    @property
    def columns(self) -> list[str]:
        """Columns that must be read."""
        plain = date_part if self.recipe is not None else column_of
        return list(dict.fromkeys([*(plain(name)[0] for name in self.inputs), *self.keep]))

    @property
    def recipe(self) -> Recipe | None:
        """How columns become features, where that is more than their numbers."""
        reader = self.model.info["reader"]
        if "recipe" not in reader or isinstance(self.model.features, Hashed):
            return None
        return Recipe.from_json(reader["recipe"])

    @property
    def numbers(self) -> frozenset[str]:
        """Columns that are features as the numbers that they hold."""
        made = self.recipe
        if made is None:
            return frozenset(self.inputs)
        return frozenset(name for name in self.inputs if made.levels(name) is None and date_part(name)[1] is None)

    @property
    def partitions(self) -> Partitions:
        """Columns that the paths of files have."""
        found = self.model.info["reader"].get("origin", {}).get("partitions", "")
        return ("hive" if found else "") if isinstance(found, str) else tuple(found)

    def in_path(self, path: str) -> dict[str, pa.Scalar]:
        """Values that a file's path gives to columns: text for categories, else numbers.

        Raises
        ------
        ShardError
            If one is no number.
        """
        recipe, found = self.recipe, {}
        for name, value in path_values(path, self.partitions).items():
            if name in self.columns:
                text = pa.scalar(value, pa.string())
                try:
                    found[name] = text if recipe is None or recipe.levels(name) is not None else text.cast(pa.float64())
                except pa.ArrowInvalid as error:
                    msg = f"{path}: {value!r} in the path for column {name!r}"
                    raise ShardError(msg, "a number, as the model was fitted with") from error
        return found

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Types that text is taken for: all columns' where the model was fitted on text, else those of dates alone."""
        reader = self.model.info["reader"]
        told = dict(reader.get("origin", {}).get("options", {}).get("types", ())) | reader.get("types", {})
        found = {name: type_of(text) for name, text in told.items()}
        named = [] if self.recipe is None else [n for n, _ in self.recipe.categories if date_part(n)[1] is None]
        return dict.fromkeys(named, pa.string()) | found

    def of(self, batch: pa.RecordBatch, where: str, first: int = 0) -> pa.Table:
        """Predictions of some rows, null for those that lack a feature where the model was fitted without such rows.

        Parameters
        ----------
        batch : RecordBatch
        where : str
            Where the rows lie, for messages.
        first : int
            Number of the first row there.

        Raises
        ------
        ShardError
            If a value is not finite or no number, or null where that does not drop a row.
        """
        positions, whole = np.arange(first, first + batch.num_rows), self._whole(batch, where)
        if whole.all():
            made = _predictions(self, self._inputs_of(Batch(batch, positions), where))
        else:
            n_inputs, of = self.model.features.n_inputs, Batch(batch.filter(pa.array(whole)), positions[whole])
            made = _predictions(self, self._inputs_of(of, where) if whole.any() else np.empty((0, n_inputs)))
            made = made.take(pa.array(np.cumsum(whole) - 1, mask=~whole))
        for i, name in enumerate(self.keep):
            made = made.add_column(i, name, batch.column(name))
        return made

    def n_empty(self, made: pa.Table | None) -> int:
        """Rows of predictions that are null."""
        return 0 if made is None else int(made.column(len(self.keep)).null_count)

    def _whole(self, batch: pa.RecordBatch, where: str) -> np.ndarray:
        """Which rows have every feature, where rows that have not do not count."""
        recipe, whole = self.recipe, np.ones(batch.num_rows, bool)
        if recipe is not None:
            for name in recipe.needed:
                whole &= ~lacking(where, batch, name, recipe)
        return whole

    def _inputs_of(self, rows: Batch, where: str) -> Any:
        hashed = self.model.features
        if isinstance(hashed, Hashed):
            batch, shard = rows.table, Shard(where, where, 0, 1, 0, rows.table.num_rows, "", "")
            for name in self.inputs:
                check_hashable(shard, batch.schema.field(column_of(name)[0]).type, name, hashed)
            return hashed_rows(shard, rows, hashed)
        recipe = self.recipe or Recipe(self.inputs, tuple(self.model.info["reader"]["target"]))
        return self._checked(where, features_of(where, rows, recipe))

    def _checked(self, where: str, x: np.ndarray) -> np.ndarray:
        if x.shape[1] != self.model.features.n_inputs:
            msg = f"{where}: {x.shape[1]} feature columns once lists are spread out"
            raise ShardError(msg, f"{self.model.features.n_inputs}, as the model was fitted with")
        return x


def _predictions(predictor: Predictor, x: Any) -> pa.Table:
    """Predictions by column, then deviations or scores."""
    model, reader = predictor.model, predictor.model.info["reader"]
    predicted = model.predict(x)
    columns: dict[str, Any] = {}
    if reader.get("n_classes"):
        target = reader["target"][0]
        ids = predicted.argmax(axis=1)
        names = reader.get("classes")
        columns[f"{target}_predicted"] = pa.array(ids) if names is None else pa.array(names).take(pa.array(ids))
        if predictor.scores:
            known = range(predicted.shape[1]) if names is None else names
            columns |= {f"{target}_score_{k}": predicted[:, i] for i, k in enumerate(known)}
    else:
        targets = _targets(reader["target"], predicted.shape[1])
        columns |= {f"{name}_predicted": predicted[:, k] for k, name in enumerate(targets)}
        if predictor.std:
            spread = model.predict_std(x)
            columns |= {f"{name}_std": spread[:, k] for k, name in enumerate(targets)}
    return pa.table(columns)


def _targets(names: Sequence[str], n_targets: int) -> list[str]:
    """A name for each target; those that are elements of one list are numbered."""
    return list(names) if len(names) == n_targets else [f"{'_'.join(names)}_{k}" for k in range(n_targets)]


def predict_files(
    predictor: Predictor, paths: Sequence[str], output: str | Path, client: Client | None = None
) -> Predicted:
    """Predict every row of a data set, in order.

    Parameters
    ----------
    predictor : Predictor
    paths : sequence of str
        Files, directories or glob patterns, or addresses of them in an object store: Parquet, Feather, CSV or JSON
        lines.
    output : str or Path
        A file whose name ends with .parquet, .feather, .csv or .jsonl, written here; or else a new folder of Parquet
        files, a piece of the data each, written where they are predicted; there only once it is whole. Both may be an
        address in an object store, such as ``s3://bucket/out.parquet``. Of a folder there, files are put one by one,
        and an empty `_SUCCESS` last.
    client : distributed.Client, optional

    Returns
    -------
    Predicted

    Raises
    ------
    CorpusError
        If the rows cannot be read.
    StoreError
        If predictions cannot be written.
    ConfigError
        If the output is a folder that holds something.
    """
    if "://" not in str(output):
        there = {each.uri for given in paths if "://" not in given for each in listed(Files(given))}
        if str(Path(output).expanduser().resolve()) in there:
            msg = f"{output} for predictions of itself"
            raise ConfigError(msg, "another file", "name one with -o that is not read")
    pieces = pieces_of(paths, predictor.columns, predictor.types, predictor.partitions)
    if ending_of(str(output)):
        with writing(output) as write:
            tables = _in_order(_predicted, predictor, pieces, client)
            counts = [(write(table), predictor.n_empty(table)) for table in tables]
    else:
        with whole_folder(output) as folder:
            parts = [(piece, f"{folder}/part-{i:05d}.parquet") for i, piece in enumerate(pieces)]
            counts = list(_in_order(_write_part, predictor, parts, client))
    return Predicted(sum(rows for rows, _ in counts), len(pieces), sum(empty for _, empty in counts))


def _predicted(piece: ds.Fragment, predictor: Predictor) -> pa.Table:
    tables, first, there = [], 0, predictor.in_path(piece.path)
    own = [name for name in predictor.columns if name not in there]
    with told(piece.path):
        schema = piece.physical_schema
        if isinstance(piece.format, ds.JsonFileFormat):
            schema = _with_times(schema, predictor.types)
        for read in piece.to_batches(schema, columns=own, batch_size=BLOCK_ROWS, use_threads=False):
            batch = without_views(read)
            for name, value in there.items():
                batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
            if batch.num_rows:
                tables.append(predictor.of(batch, piece.path, first))
                first += batch.num_rows
    return pa.concat_tables(tables) if tables else None


def _with_times(schema: pa.Schema, types: Mapping[str, pa.DataType]) -> pa.Schema:
    """Text as the times that the fit took it for: of JSON, Arrow sees only those of whole seconds."""
    for i, field in enumerate(schema):
        told = types.get(field.name)
        if told is not None and pa.types.is_timestamp(told) and pa.types.is_string(field.type):
            schema = schema.set(i, field.with_type(told))
    return schema


def _write_part(part: tuple[ds.Fragment, str], predictor: Predictor) -> tuple[int, int]:
    table = _predicted(part[0], predictor)
    if table is None:
        return 0, 0
    with writing(part[1]) as write:
        return int(write(table)), predictor.n_empty(table)


def _in_order(work: Any, predictor: Predictor, items: Sequence[Any], client: Client | None) -> Iterator[Any]:
    """What work makes of each item, a few a worker ahead of what is asked for."""
    if client is None:
        yield from (work(item, predictor) for item in items)
        return
    # Once to each worker, and not with each task. A name made of the content could be one that is being let go of.
    shared = client.scatter(predictor, broadcast=True, hash=False)
    room, waiting = _AHEAD * n_workers(client), list[Any]()
    try:
        for item in items:
            waiting.append(client.submit(work, item, shared, pure=False))
            if len(waiting) > room:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        client.cancel(waiting)
