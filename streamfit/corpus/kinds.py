"""Every kind of table by its name: what configs, headers and models say to have rows read. Floor 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamfit.corpus.array_files import ARRAYS, ArrayFiles
from streamfit.corpus.base import Files
from streamfit.corpus.dataset import FORMATS, DatasetFiles
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.table import Table
from streamfit.errors import MismatchError
from streamfit.features import Hashed

KINDS = (*FORMATS, *ARRAYS)
"""Kinds of tables that lie in files."""


def read_alike(
    recipe: Mapping[str, Any], origin: Mapping[str, Any], files: Files, label: str, hashed: Hashed | None
) -> Table:
    """Files read as a header says.

    Parameters
    ----------
    recipe, origin : mapping
        As JSON; see `Recipe.to_json` and `Table.origin`.
    files : Files
    label : str
    hashed : Hashed, optional

    Raises
    ------
    MismatchError
        If the rows did not come from files.
    """
    kind, made = origin["kind"], Recipe.from_json(recipe)
    if kind in FORMATS:
        options = {name: _tuples(value) for name, value in origin["options"].items()}
        parts = origin["partitions"]
        return DatasetFiles.of(
            kind,
            files,
            options=options,
            partitions=parts if isinstance(parts, str) else tuple(parts),
            recipe=made,
            label=label,
            hashed=hashed,
        )
    if kind in ARRAYS:
        return ArrayFiles(files, kind, shard_rows=origin["shard_rows"], recipe=made, label=label, hashed=hashed)
    msg = f"rows that were given as {kind}"
    raise MismatchError(msg, f"files of kind {', '.join(KINDS)}", "give them by Python's `add` again")


def told_options(kind: str | None, files: Files) -> dict[str, Any]:
    """Options of a format that names of files tell: tabs between the values of .tsv."""
    return {"delimiter": "\t"} if kind == "csv" and ".tsv" in files.root.lower() else {}


def of_another_kind(
    kind: str, recipe: Recipe, origin: Mapping[str, Any], files: Files, label: str, hashed: Hashed | None
) -> Table:
    """Files of one kind read by the recipe of rows of another.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    recipe : Recipe
    origin : mapping
        Of the rows that the recipe was made for, whose columns may be in paths here as well.
    files : Files
    label : str
    hashed : Hashed, optional

    Raises
    ------
    CorpusError
        If there are no such files, or types of columns of text cannot be found in them.
    """
    if kind in ARRAYS:
        return ArrayFiles(files, kind, recipe=recipe, label=label, hashed=hashed)
    parts = origin.get("partitions", "")
    partitions = parts if isinstance(parts, str) else tuple(parts)
    given = {"partitions": partitions, "recipe": recipe, "label": label, "hashed": hashed}
    return DatasetFiles.of(kind, files, options=told_options(kind, files), **given).settled()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
