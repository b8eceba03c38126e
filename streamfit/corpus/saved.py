"""Hugging Face data sets that were saved to disk: a document a row. Floor 4; the only file that imports `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from streamfit.corpus.base import Split, split_of
from streamfit.corpus.labels import NO_LABELS, Labels, combinations, selected_id
from streamfit.corpus.text import BYTES_PER_TOKEN, Documents
from streamfit.corpus.values import column_of, is_plain, kept, matching, selected, strings_of
from streamfit.errors import CorpusError, ShardChangedError, ShardError
from streamfit.identity import content_id, hasher
from streamfit.plan import Shard


@dataclass(frozen=True)
class SavedDataset(Documents):
    """A data set written by `Dataset.save_to_disk`; nothing of it is run, only its Arrow files are read.

    Parameters
    ----------
    files : Files
        Its root is the data set's folder.
    field : str
        Column of the texts.
    split : {'train', 'validation', 'test'}, optional
        Keep the documents of one part: a hash of the text decides.
    fractions : tuple of float
    shard_rows : int
    labels : Labels
        Its path is searched in the name of the data set's folder.
    """

    field: str = "text"
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    shard_rows: int = 2048
    labels: Labels = NO_LABELS

    def parts(self, path: Path) -> list[tuple[int, int]]:
        rows = len(self._dataset(str(path)))
        return [(lo, min(lo + self.shard_rows, rows)) for lo in range(0, rows, self.shard_rows)]

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def _dataset(self, root: str) -> Any:
        if root not in self._opened:
            self._opened[root] = self._open(root)
        return self._opened[root]

    def _open(self, root: str) -> Any:
        try:
            loaded = datasets.load_from_disk(root)
        except (OSError, ValueError) as error:
            msg = f"{root}: {str(error).splitlines()[0]}"
            raise CorpusError(msg, "a data set written by save_to_disk", "check the path in [corpus]") from error
        if isinstance(loaded, datasets.DatasetDict):
            msg = f"{root} holds the data sets {', '.join(loaded)}"
            raise CorpusError(msg, "one data set", f"set root to one of them, such as {root}/{next(iter(loaded))}")
        columns = loaded.column_names
        if self.field not in columns or loaded.features[self.field].dtype not in ("string", "large_string"):
            msg = f"{root} has no text column {self.field!r} among {', '.join(columns)}"
            raise CorpusError(msg, "a column of strings", "set `field` in the config's [corpus]")
        return loaded.with_format("arrow")

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the data set themselves; the memory map does not travel.
        return {name: value for name, value in self.__dict__.items() if name != "_opened"}

    def _columns(self, root: str, start: int, stop: int, names: set[str]) -> pa.Table:
        loaded = self._dataset(root)
        missing = sorted(names - set(loaded.column_names))
        if missing:
            there = ", ".join(loaded.column_names)
            msg = f"{root}: no column {', '.join(map(repr, missing))} among {there}"
            raise ShardError(msg, "a column of the data set")
        return loaded.select_columns(sorted(names))[start:stop]

    def _texts(self, root: str, start: int, stop: int) -> list[str]:
        return [text or "" for text in self._columns(root, start, stop, {self.field})[self.field].to_pylist()]

    def wholes(self) -> list[tuple[str, Shard]]:
        root = Path(self.files.root).absolute()
        found = []
        for start, stop in self.parts(root):
            texts = self._texts(str(root), start, stop)
            size = sum(len(text.encode()) for text in texts)
            whole = Shard(
                key=f"{root.name}#{start}-{stop}",
                uri=str(root),
                start=start,
                stop=stop,
                size=size,
                planned_rows=max(1, size // BYTES_PER_TOKEN),
                content_id=_digest(texts),
                source=self.label,
            )
            found.append((root.name, whole))
        return found

    def labelled(self, whole: Shard, name: str) -> list[Shard]:
        if not self.labels.keys:
            return [self.labels.label(whole, name)]
        texts = self._texts(whole.uri, whole.start, whole.stop)
        keys = [(key, *column_of(key)) for key in self.labels.keys]
        table = self._columns(whole.uri, whole.start, whole.stop, {column for _, column, _ in keys})
        columns = {key: strings_of(table.column(column), period) for key, column, period in keys}
        return [self._sealed(shard, texts) for shard in self.labels.cut(whole, name, combinations(whole.key, columns))]

    def _sealed(self, shard: Shard, texts: list[str]) -> Shard:
        """A shard that selects rows, with the texts of these rows in its content id.

        The id of the whole is one of texts alone, so it would not show that a value moved to another row.
        """
        if not shard.select:
            return shard
        chosen = [texts[row] for row in np.flatnonzero(self._selected(shard))]
        sealed = content_id(f"{selected_id(shard.within, shard.select)}\n{_digest(chosen)}")
        return replace(shard, content_id=sealed)

    def _selected(self, shard: Shard) -> np.ndarray:
        """Which rows of the part the shard selects."""
        n_rows = shard.stop - shard.start
        if not shard.select:
            return np.ones(n_rows, bool)
        table = self._columns(shard.uri, shard.start, shard.stop, {column_of(key)[0] for key, _ in shard.select})
        return selected(n_rows, shard.select, table.column)

    def _checked(self, shard: Shard) -> tuple[list[str], np.ndarray]:
        """Texts of the part, and which of them are the shard's."""
        try:
            texts = self._texts(shard.uri, shard.start, shard.stop)
        except ShardError:
            raise
        except CorpusError as error:
            msg = f"{shard.key}: {error.got}"
            raise ShardChangedError(msg, "the data set that was found when the run began", "run again") from error
        if _digest(texts) != shard.bytes_id or self._sealed(shard, texts).content_id != shard.content_id:
            msg = f"{shard.key}: content changed while the corpus was read"
            raise ShardChangedError(msg, f"content {shard.content_id[:12]}", "run again once nobody writes to it")
        return texts, kept(len(texts), shard.without) & self._selected(shard)

    def numbered(self, shard: Shard) -> Iterator[tuple[int, str]]:
        texts, mask = self._checked(shard)
        for row in np.flatnonzero(mask).tolist():
            if self.split in (None, split_of(texts[row], self.fractions)):
                yield row, texts[row]

    def before(self, shard: Shard) -> int | None:
        return shard.start

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        _, mask = self._checked(shard)
        chosen = self._columns(shard.uri, shard.start, shard.stop, {column}).column(column)
        if not is_plain(chosen.type):
            msg = f"{shard.key}: column {column!r} has type {chosen.type}"
            raise ShardError(msg, "numbers, strings or dates")
        return tuple(np.flatnonzero(mask & matching(chosen, values)).tolist())


def _digest(texts: list[str]) -> str:
    digest = hasher()
    for text in texts:
        data = text.encode()
        # Lengths too, so that moving text from one document to the next is a change.
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
