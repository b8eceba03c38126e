"""Tables of any kind: parts that give Arrow batches, read by a recipe into blocks of rows. Floor 4.

A kind of table says where its parts are and how one is decoded. Which rows count, what becomes of them, labels and
deletions are the same for all, and so the same rows give the same sums wherever they come from.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa

from streamfit.corpus import encode
from streamfit.corpus.base import Rows, Source, Split
from streamfit.corpus.choosing import counting
from streamfit.corpus.hashed_rows import check_hashable, hashed_rows
from streamfit.corpus.labels import NO_LABELS, Labels, combinations
from streamfit.corpus.parquet_rows import Batch
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.values import column_of, is_plain, matching, selected, strings_of
from streamfit.errors import CorpusError, ShardError
from streamfit.features import Hashed
from streamfit.frame import BLOCK_ROWS
from streamfit.plan import Shard, told_apart

SHARD_ROWS = 2**16
"""Rows of a shard, where a source has no files that are cut by themselves."""


COLUMNS = "every configured column"
"""What is expected where a part lacks one."""


@dataclass(frozen=True)
class Table(Source):
    """Rows of named columns.

    Parameters
    ----------
    recipe : Recipe
        How columns become rows.
    label : str
        Source label of its shards.
    labels : Labels
        Other labels of its shards, and where they come from.
    hashed : Hashed, optional
        Makes sparse rows of the feature columns, which then may hold text, and lists of text, too.
    split : {'train', 'validation', 'test'}, optional
        The part that is read, where the recipe names a column that says so.
    """

    recipe: Recipe = field(kw_only=True)
    label: str = field(default="table", kw_only=True)
    labels: Labels = field(default=NO_LABELS, kw_only=True)
    hashed: Hashed | None = field(default=None, kw_only=True)
    split: Split | None = field(default="train", kw_only=True)

    @abstractmethod
    def parts(self) -> list[tuple[str, Shard]]:
        """Name of a file (or what stands for one) and shard, whole and without labels, in the order of their keys."""

    @abstractmethod
    def batches(self, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """All rows of a shard's part in order, a bounded number at a time: some columns alone.

        Raises
        ------
        ShardChangedError
            If the content is no longer the shard's.
        ShardError
            If it cannot be decoded, or a column is missing.
        """

    @abstractmethod
    def origin(self) -> dict[str, Any]:
        """What `streamfit.tables` needs to read other files of this kind alike, as JSON with a `kind`."""

    def settled(self) -> Self:
        """The same with what reading needs to know and the data alone can tell, such as types of columns of text.

        Raises
        ------
        CorpusError
            If the data cannot be read.
        """
        return self

    @property
    def features(self) -> tuple[str, ...]:
        """Feature columns."""
        return self.recipe.features

    @property
    def target(self) -> tuple[str, ...]:
        """Target columns."""
        return self.recipe.target

    @property
    def weight(self) -> str | None:
        """Column of row weights."""
        return self.recipe.weight

    @property
    def is_weighted(self) -> bool:
        return self.weight is not None

    @property
    def n_classes(self) -> int | None:
        """Number of classes of a one-hot target."""
        return self.recipe.n_classes

    @property
    def columns(self) -> list[str]:
        """Columns that are read for rows, each once."""
        if self.hashed is None:
            return self.recipe.columns
        names = [column_of(name)[0] for name in self.recipe.features]
        return list(dict.fromkeys([*names, *(c for c in self.recipe.columns if c not in self.recipe.features)]))

    def shards(self) -> list[Shard]:
        return told_apart(shard for name, part in self.parts() for shard in self.labelled(part, name))

    def labelled(self, part: Shard, name: str) -> list[Shard]:
        """A part of the file of this relative path with its labels: several shards, where its rows differ.

        Raises
        ------
        CorpusError
            If a column of labels is missing.
        """
        if not self.labels.keys:
            return [self.labels.label(part, name)]
        keys = [(key, *column_of(key)) for key in self.labels.keys]
        try:
            texts: dict[str, list[pa.Array]] = {key: [] for key, _, _ in keys}
            for batch in self.batches(part, list(dict.fromkeys(column for _, column, _ in keys))):
                for key, column, period in keys:
                    texts[key].append(strings_of(batch.column(column), period))
        except ShardError as error:
            if error.expected == COLUMNS:  # a mistake in the config, not damage of this file
                raise CorpusError(error.got, "every column of [corpus.labels]") from error
            return [self.labels.label(part, name)]  # listed whole, and refused or skipped when it is read
        columns = {key: pa.chunked_array(parts, pa.string()).combine_chunks() for key, parts in texts.items()}
        return self.labels.cut(part, name, combinations(part.key, columns))

    def read(self, shard: Shard) -> Iterator[Rows]:
        for batch in in_blocks(self._counted(shard)):
            if self.hashed is None:
                x = encode.features_of(shard.key, batch, self.recipe)
            else:
                x = hashed_rows(shard, batch, self.hashed)
            y = encode.targets_of(shard.key, batch, self.recipe)
            yield Rows(x, y, encode.weights_of(shard.key, batch, self.recipe))

    def _counted(self, shard: Shard) -> Iterator[Batch]:
        """Batches of the rows that count, and where each row stands in its part."""
        wanted, first = self.columns, True
        for batch in self.chosen(shard, wanted):
            if first and self.hashed is not None:
                for name in self.recipe.features:
                    check_hashable(shard, batch.table.schema.field(column_of(name)[0]).type, name, self.hashed)
            first = False
            mask = counting(shard.key, batch.table, self.recipe, self.split)
            rows = batch if mask.all() else _narrowed(batch, mask)
            yield Batch(rows.table.select(wanted), rows.positions)

    def chosen(self, shard: Shard, columns: list[str]) -> Iterator[Batch]:
        """Batches of the rows that the shard selects and does not leave out, whatever the recipe says of them.

        What does not count is gone first: its values may be missing, or of no category.
        """
        read = list(dict.fromkeys([*columns, *(column_of(key)[0] for key, _ in shard.select)]))
        without = np.asarray(shard.without, np.int64)
        first = 0
        for table in self.batches(shard, read):
            positions = np.arange(first, first + table.num_rows)
            first += table.num_rows
            mask = ~np.isin(positions, without, assume_unique=True)
            mask &= selected(table.num_rows, shard.select, table.column)
            whole = Batch(table, positions)
            yield whole if mask.all() else _narrowed(whole, mask)

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        # A row that the recipe leaves out is not counted, whatever its value here is.
        found: list[int] = []
        for batch in self.chosen(shard, [column, *(self.columns if self.recipe.chooses else ())]):
            kind = batch.table.schema.field(column).type
            if not is_plain(kind):
                msg = f"{shard.key}: column {column!r} has type {kind}"
                raise ShardError(msg, "numbers, strings or dates")
            mask = matching(batch.table.column(column), values)
            if self.recipe.chooses:
                mask &= counting(shard.key, batch.table, self.recipe, self.split)
            found += batch.positions[mask].tolist()
        return tuple(found)


def _narrowed(batch: Batch, mask: np.ndarray) -> Batch:
    return Batch(batch.table.filter(pa.array(mask)), batch.positions[mask])


def require(where: str, there: Iterable[str], columns: Iterable[str]) -> None:
    """Refuse a part that lacks a column.

    Raises
    ------
    ShardError
        Naming those that are there.
    """
    names = list(there)
    missing = [c for c in dict.fromkeys(columns) if c not in set(names)]
    if missing:
        few = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        msg = f"{where}: no column {', '.join(map(repr, missing))} among {few}"
        raise ShardError(msg, COLUMNS, "correct the columns in the config")


def in_blocks(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same rows in batches of exactly `BLOCK_ROWS` but for the last.

    Where a block ends depends on the rows that count alone, as if the source had never held the others.
    """
    held: list[Batch] = []
    n_rows = 0
    for batch in batches:
        if not len(batch.positions):
            continue
        held.append(batch)
        n_rows += len(batch.positions)
        if n_rows < BLOCK_ROWS:
            continue
        whole = _joined(held)
        cut = n_rows // BLOCK_ROWS * BLOCK_ROWS
        for lo in range(0, cut, BLOCK_ROWS):
            yield _part(whole, lo, lo + BLOCK_ROWS)
        n_rows -= cut
        held = [_part(whole, cut, cut + n_rows)] if n_rows else []
    if n_rows:
        yield _joined(held)


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(batch.table.slice(start, stop - start), batch.positions[start:stop])


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    table = pa.Table.from_batches([b.table for b in batches]).combine_chunks()
    return Batch(table.to_batches()[0], np.concatenate([b.positions for b in batches]))
