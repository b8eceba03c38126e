"""How rows are read, as headers and models keep it, and sources made of that again. Floor 6."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from streamfit.corpus import Files, ParquetTable, Source
from streamfit.corpus.base import SPLITS
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.freezing import read_as_hashed
from streamfit.corpus.kinds import of_another_kind, read_alike, told_options
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.table import Table
from streamfit.corpus.text_formats import TextFormat
from streamfit.errors import ConfigError, CorpusError, MismatchError
from streamfit.features import Hashed

_Any = TypeVar("_Any", bound=Source)


def reader_of(source: ParquetTable | Table) -> dict[str, Any]:
    """How rows are read, as a header keeps it."""
    columns = {"features": list(source.features), "target": list(source.target)}
    found: dict[str, Any] = {"kind": "table", **columns, "weight": source.weight, "n_classes": source.n_classes}
    if source.hashed is not None:
        made = source.hashed
        found["hashed"] = {"n": made.n, "categories": [*made.categories], "alternate_sign": made.alternate_sign}
    if isinstance(source, Table) and source.recipe.classes:
        found["classes"] = list(source.recipe.classes)
    if isinstance(source, Table):
        found |= {"recipe": source.recipe.to_json(), "origin": source.origin()}
    return found


def asked_of(reader: dict[str, Any]) -> dict[str, Any]:
    """A header's reader as it was asked for, without what was then found in the data."""
    given = reader.get("asked")
    if given is None:
        return reader
    origin = reader["origin"]
    if "options" in origin:
        origin = {**origin, "options": {**origin["options"], **given["options"]}}
    return {**reader, "recipe": {**reader["recipe"], **given["recipe"]}, "origin": origin}


def asked(source: ParquetTable | Table) -> dict[str, Any]:
    """What of a source freezing will change, as it is before."""
    if not isinstance(source, Table):
        return {}
    recipe, options = source.recipe.to_json(), source.origin().get("options", {})
    types = {"types": options["types"]} if "types" in options else {}
    return {"asked": {"recipe": {name: recipe[name] for name in ("categories", "fills")}, "options": types}}


def table_source(
    reader: dict[str, Any], files: Files, label: str = "table", kind: str | None = None
) -> ParquetTable | Table:
    """Another set of files read the way a header or model says.

    Parameters
    ----------
    reader : dict
        Of a header or model.
    files : Files
    label : str
        Source label of their shards.
    kind : str, optional
        Format of the files, if it may be another than that of the rows that were fitted.

    Raises
    ------
    MismatchError
        If it was not fitted to a table of files, or columns that are hashed are of another type there.
    """
    return read_as_hashed(_table_source(reader, files, label, kind), reader.get("types", {}))


def _table_source(reader: dict[str, Any], files: Files, label: str, kind: str | None) -> ParquetTable | Table:
    if reader.get("kind") != "table":
        msg = f"a store or model of {reader.get('kind', 'unknown')} rows"
        raise MismatchError(msg, "one of a table")
    features, target = tuple(reader["features"]), tuple(reader["target"])
    made = reader.get("hashed")
    hashed = None
    if made is not None:
        hashed = Hashed(made["n"], features, tuple(made["categories"]), made["alternate_sign"])
    origin = reader.get("origin", {"kind": "parquet", "options": {}, "partitions": ""})
    remote = "://" in files.root and "recipe" not in reader  # which the way for plain numbers does not read
    if remote or kind not in (None, origin["kind"]):
        plain = Recipe(features, target, reader["weight"], reader["n_classes"] or None)
        recipe = Recipe.from_json(reader["recipe"]) if "recipe" in reader else plain
        return of_another_kind(kind or origin["kind"], recipe, origin, files, label, hashed)
    if "recipe" in reader:
        if told := told_options(kind, files):
            origin = {**origin, "options": {**origin["options"], **told}}
        return read_alike(reader["recipe"], origin, files, label, hashed)
    n_classes = reader["n_classes"] or None
    return ParquetTable(files, features, target, reader["weight"], n_classes, label, hashed=hashed)


def frozen_by(source: _Any, reader: dict[str, Any]) -> _Any:
    """A source that reads as a header says: with the categories, means and types that were found for it.

    Parameters
    ----------
    source : Source
        Returned as it is, unless it is a `Table`.
    reader : dict
        Of a header.

    Raises
    ------
    MismatchError
        If the header does not say how such rows are read.
    """
    if not isinstance(source, Table):
        return source
    if "recipe" not in reader:
        msg = f"rows by a recipe for a store of {reader.get('kind', 'unknown')} rows that has none"
        raise MismatchError(msg, "the kind of source that the store was made with")
    made = replace(source, recipe=Recipe.from_json(reader["recipe"]))
    if isinstance(made, DatasetFiles) and isinstance(made.format, TextFormat):
        types = tuple(map(tuple, reader["origin"].get("options", {}).get("types", ())))
        return replace(made, format=replace(made.format, types=types))
    return made


def held_out_table(
    reader: dict[str, Any], files: Files, split: str | None = None, kind: str | None = None
) -> ParquetTable | Table:
    """Files to score a model on: where rows say what they are for, those of one part.

    Parameters
    ----------
    reader : dict
        Of a header or model.
    files : Files
    split : {'train', 'validation', 'test'}, optional
        Test rows without it.
    kind : str, optional
        Format of the files; that of the rows that were fitted without it.

    Raises
    ------
    ConfigError
        If there is no such part, or no column that says.
    """
    table = table_source(reader, files, kind=kind)
    told = isinstance(table, Table) and bool(table.recipe.split_column)
    if split is not None and (split not in SPLITS or not told):
        msg = f"the part {split!r} of rows {'by their split column' if told else 'without a split column'}"
        raise ConfigError(msg, f"one of {', '.join(SPLITS)}, where [corpus] has a split_column")
    if not isinstance(table, Table) or not told:
        return table
    return replace(table, split=SPLITS[SPLITS.index(split or "test")])  # type: ignore[arg-type]


def no_rows(source: ParquetTable | Table) -> CorpusError:
    """What to say of a corpus none of whose rows count."""
    msg = "a corpus without any rows that count"
    if isinstance(source, Table) and source.recipe.split_column and source.split is not None:
        told = f"{source.recipe.split_column!r} is {source.recipe.split_value(source.split)!r}"
        return CorpusError(msg, f"rows whose {told}", "set `split_values`, or filter less")
    if isinstance(source, Table) and source.recipe.chooses:
        remedy = "look at `filters`, and at columns that no row has: rows that lack a value may be dropped"
        return CorpusError(msg, "at least one row", remedy)
    return CorpusError(msg, "at least one row", "check the paths and columns of [corpus]")
