"""Hugging Face data sets that were saved to disk: a document a row. Floor 4; the only file that imports `datasets`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from streamfit.corpus.base import Split, split_of
from streamfit.corpus.text import BYTES_PER_TOKEN, Documents
from streamfit.errors import CorpusError, ShardChangedError
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
    """

    field: str = "text"
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    shard_rows: int = 2048

    def parts(self, path: Path) -> list[tuple[int, int]]:
        rows = len(self._dataset)
        return [(lo, min(lo + self.shard_rows, rows)) for lo in range(0, rows, self.shard_rows)]

    @cached_property
    def _dataset(self) -> Any:
        root = self.files.root
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
        return loaded.select_columns(self.field)

    def __getstate__(self) -> dict[str, Any]:
        # Workers open the data set themselves; the memory map does not travel.
        return {name: value for name, value in self.__dict__.items() if name != "_dataset"}

    def _texts(self, start: int, stop: int) -> list[str]:
        return [text or "" for text in self._dataset[start:stop][self.field]]

    def shards(self) -> list[Shard]:
        root = Path(self.files.root).absolute()
        found = []
        for start, stop in self.parts(root):
            texts = self._texts(start, stop)
            size = sum(len(text.encode()) for text in texts)
            found.append(
                Shard(
                    key=f"{root.name}#{start}-{stop}",
                    uri=str(root),
                    start=start,
                    stop=stop,
                    size=size,
                    planned_rows=max(1, size // BYTES_PER_TOKEN),
                    content_id=_digest(texts),
                    source=self.label,
                )
            )
        return found

    def documents(self, shard: Shard) -> list[str]:
        texts = self._texts(shard.start, shard.stop)
        if _digest(texts) != shard.content_id:
            msg = f"{shard.key}: content changed while the corpus was read"
            raise ShardChangedError(msg, f"content {shard.content_id[:12]}", "run again once nobody writes to it")
        return [text for text in texts if self.split in (None, split_of(text, self.fractions))]


def _digest(texts: list[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        # Lengths too, so that moving text from one document to the next is a change.
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
