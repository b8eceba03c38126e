"""Predictions of a data set into a data set, a piece of it on each worker. Floor 7."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from distributed import Client

from streamfit.corpus import Files
from streamfit.corpus.choosing import lacking
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.encode import features_of
from streamfit.corpus.hashed_rows import check_hashable, hashed_rows
from streamfit.corpus.openings import listed
from streamfit.corpus.parquet_rows import Batch
from streamfit.corpus.recipe import Recipe, date_part
from streamfit.corpus.table import COLUMNS, Table
from streamfit.corpus.text_formats import COMPRESSIONS, TextFormat, type_of
from streamfit.corpus.values import column_of
from streamfit.engine import n_workers
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardError
from streamfit.features import Hashed
from streamfit.frame import BLOCK_ROWS
from streamfit.models import LinearModel
from streamfit.plan import Shard
from streamfit.readers import table_source
from streamfit.rows import kind_told, of_other_kinds
from streamfit.table_files import ending_of, whole_folder, writing

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
        Standard deviations as well, of classes those of their scores; the model must carry its posterior.
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
        known = range(predicted.shape[1]) if names is None else names
        if predictor.scores:
            columns |= {f"{target}_score_{k}": predicted[:, i] for i, k in enumerate(known)}
        if predictor.std:
            spread = model.predict_std(x)
            columns |= {f"{target}_std_{k}": spread[:, i] for i, k in enumerate(known)}
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
        Files, directories or glob patterns, or addresses of them in an object store, read as those that were fitted:
        Parquet, Arrow, CSV or JSON lines, compressed or not, or folders of arrays. Where names do not say the format,
        it is that of the fit.
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
    reading = _Reading(predictor, tuple(_table(predictor, path) for path in paths))
    pieces = [(i, part) for i, table in enumerate(reading.tables) for part in _parts(table)]
    if _is_file(output):
        with writing(output) as write:
            tables = _in_order(_predicted, reading, pieces, client)
            counts = [(write(table), predictor.n_empty(table)) for table in tables]
    else:
        with whole_folder(output) as folder:
            parts = [(piece, f"{folder}/part-{i:05d}.parquet") for i, piece in enumerate(pieces)]
            counts = list(_in_order(_write_part, reading, parts, client))
    return Predicted(sum(rows for rows, _ in counts), len(pieces), sum(empty for _, empty in counts))


def _is_file(output: str | Path) -> bool:
    """Whether a name is that of a file, by its ending."""
    if ending_of(str(output)):
        return True
    last = PurePosixPath(str(output)).suffix.lower()
    if last in COMPRESSIONS or last in _OTHER_ENDINGS:
        msg = f"predictions into {output}"
        expected = "a file that ends with .parquet, .feather, .csv, .tsv or .jsonl, or a folder of Parquet"
        raise ConfigError(msg, expected, "what is to be compressed can be piped: `predict MODEL -`")
    return False


_OTHER_ENDINGS = (".txt", ".json", ".xz", ".zip", ".tar", ".npy", ".xlsx", ".orc")
"""Of files that are not written, and hardly of a folder."""


class _Reading(NamedTuple):
    """What every worker needs: how rows are read from each of the paths, and what is made of them."""

    predictor: Predictor
    tables: tuple[Table, ...]


def _table(predictor: Predictor, path: str) -> Table:
    """Files read as those that were fitted, whatever their format."""
    reader, files = predictor.model.info["reader"], Files(path)
    if "recipe" not in reader:
        plain = Recipe(predictor.inputs, tuple(reader["target"]))
        reader = {**reader, "recipe": plain.to_json(), "origin": {"kind": "parquet", "options": {}, "partitions": ""}}
    names = [each.name for each in listed(files)]
    # A pattern may not tell, nor what stands for a folder in an object store: the names of what is there do.
    kind = kind_told(path) or next(filter(None, map(kind_told, names)), None)
    if kind is not None and (others := of_other_kinds(names, kind)):
        msg = f"{path} holds files of kind {kind!r}, and {', '.join(f'{n:,} {ending}' for ending, n in others.items())}"
        raise CorpusError(msg, "files of one kind", "name them, or give a pattern such as '*.csv'")
    table = table_source(reader, files, kind=kind)
    assert isinstance(table, Table)  # by its recipe
    if not isinstance(table, DatasetFiles):  # arrays: those that are needed, targets are not
        return replace(table, hashed=None, recipe=Recipe(tuple(predictor.columns), tuple(predictor.columns[:1])))
    if isinstance(table.format, TextFormat):
        # JSON tells numbers from names by itself, and no times.
        told = {n: t for n, t in predictor.types.items() if table.kind == "csv" or pa.types.is_timestamp(t)}
        types = dict(table.format.types) | {name: str(kind) for name, kind in told.items()}
        # What is only copied is copied as it is written: 0001 is not 1.
        inputs = {column for name in predictor.inputs for column in (name, date_part(name)[0])}
        if table.kind == "csv":
            types |= dict.fromkeys(set(predictor.keep) - inputs, "string")
        table = replace(table, format=replace(table.format, types=tuple(types.items())))
    return table


def _parts(table: Table) -> list[Shard]:
    """What is predicted at a time. Files are not hashed for it: nothing is counted."""
    return [each.shard for each in table.pieces()] if isinstance(table, DatasetFiles) else table.shards()


def _predicted(piece: tuple[int, Shard], reading: _Reading) -> pa.Table:
    predictor, table, shard = reading.predictor, reading.tables[piece[0]], piece[1]
    read = table.decoded if isinstance(table, DatasetFiles) else table.batches
    tables, first = [], 0
    try:
        for found in read(shard, predictor.columns):
            for lo in range(0, found.num_rows, BLOCK_ROWS):
                batch = found.slice(lo, BLOCK_ROWS)
                tables.append(predictor.of(batch, shard.key, first))
                first += batch.num_rows
    except ShardError as error:
        if error.expected != COLUMNS:
            raise
        raise ShardError(error.got, "every feature of the model, and every column to keep") from error
    return pa.concat_tables(tables) if tables else None


def _write_part(part: tuple[tuple[int, Shard], str], reading: _Reading) -> tuple[int, int]:
    table = _predicted(part[0], reading)
    if table is None:
        return 0, 0
    with writing(part[1]) as write:
        return int(write(table)), reading.predictor.n_empty(table)


def _in_order(work: Any, reading: _Reading, items: Sequence[Any], client: Client | None) -> Iterator[Any]:
    """What work makes of each item, a few a worker ahead of what is asked for."""
    if client is None:
        yield from (work(item, reading) for item in items)
        return
    # Once to each worker, and not with each task. A name made of the content could be one that is being let go of.
    shared = client.scatter(reading, broadcast=True, hash=False)
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
