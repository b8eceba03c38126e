"""Texts in a column of Parquet or Arrow files: a document a row, on a disk or in an object store. Floor 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from streamfit.corpus.base import Split, split_of
from streamfit.corpus.dataset import DatasetFiles
from streamfit.corpus.labels import NO_LABELS, Labels
from streamfit.corpus.recipe import Recipe
from streamfit.corpus.table import COLUMNS
from streamfit.corpus.text import BYTES_PER_TOKEN, Documents
from streamfit.errors import ShardError
from streamfit.plan import Shard, told_apart


@dataclass(frozen=True)
class TableText(Documents):
    """A document is a row of a table; a row group of Parquet, or a file of Arrow, is a shard.

    Parameters
    ----------
    field : str
        Column of the texts. A row without one is an empty document.
    split : {'train', 'validation', 'test'}, optional
        Keep the documents of one part: a hash of the text decides, so that equal texts are never on both sides.
    fractions : tuple of float
    labels : Labels
        Its columns are the table's.
    kind : {'parquet', 'arrow'}
    """

    field: str = "text"
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    labels: Labels = NO_LABELS
    kind: str = "parquet"

    @property
    def table(self) -> DatasetFiles:
        """The rows, of which the text is the one column that must be there."""
        recipe = Recipe((self.field,), (self.field,))
        return DatasetFiles.of(self.kind, self.files, recipe=recipe, label=self.label, labels=self.labels)

    def shards(self) -> list[Shard]:
        return told_apart(super().shards())

    def wholes(self) -> list[tuple[str, Shard]]:
        found = self.table.parts()
        return [(name, replace(part, planned_rows=max(1, part.size // BYTES_PER_TOKEN))) for name, part in found]

    def labelled(self, whole: Shard, name: str) -> list[Shard]:
        return self.table.labelled(whole, name)

    def numbered(self, shard: Shard) -> Iterator[tuple[int, str]]:
        for row, found in self._texts(shard):
            text = found or ""
            if self.split in (None, split_of(text, self.fractions)):
                yield row, text

    def file_of(self, shard: Shard) -> str:
        return super().file_of(shard).removesuffix(f"#{shard.start}")

    def before(self, shard: Shard) -> int | None:
        parts = self.table.format.cut(shard.uri)
        return sum(part.n_rows for part in parts if part.stop <= shard.start)

    def _texts(self, shard: Shard) -> Iterator[tuple[int, str | None]]:
        try:
            for batch in self.table.chosen(shard, [self.field]):
                column = batch.table.column(self.field)
                kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                    msg = f"{shard.key}: column {self.field!r} has type {column.type}"
                    raise ShardError(msg, "strings", "set `field` in the config's [corpus]")
                yield from zip(batch.positions.tolist(), column.to_pylist(), strict=True)
        except ShardError as error:
            if error.expected != COLUMNS:
                raise
            raise ShardError(error.got, "a column of texts", "set `field` in the config's [corpus]") from error

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return self.table.positions(shard, column, values)
