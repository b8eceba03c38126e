"""Documents: text files, a document a file, and JSON lines, a document a line. Floor 4."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamfit.corpus.base import Files, Split, content_ids, read_unchanged, split_of
from streamfit.errors import ConfigError, ShardError
from streamfit.plan import Shard

BYTES_PER_TOKEN = 3
"""Estimate for planning, before a tokenizer has seen the text."""


@dataclass(frozen=True)
class Documents(ABC):
    """A corpus of documents.

    Parameters
    ----------
    files : Files
    label : str
        Source label of its shards.
    """

    files: Files
    label: str = "text"

    @abstractmethod
    def parts(self, path: Path) -> list[tuple[int, int]]:
        """Byte ranges that a file is cut into."""

    @abstractmethod
    def documents(self, shard: Shard) -> list[str]:
        """Texts of a shard.

        Raises
        ------
        ShardError
            If they cannot be decoded.
        """

    def shards(self) -> list[Shard]:
        """All shards that have any bytes, in the order of their keys."""
        found = [(name, path, *part) for name, path in self.files.find() for part in self.parts(path)]
        ids = content_ids([(path, start, stop) for _, path, start, stop in found])
        return [
            Shard(
                key=name if start == 0 and stop == path.stat().st_size else f"{name}#{start}-{stop}",
                uri=str(path),
                start=start,
                stop=stop,
                size=stop - start,
                planned_rows=max(1, (stop - start) // BYTES_PER_TOKEN),
                content_id=content_id,
                source=self.label,
            )
            for (name, path, start, stop), content_id in zip(found, ids, strict=True)
        ]


@dataclass(frozen=True)
class TextFiles(Documents):
    """Each file is one document and one shard.

    Parameters
    ----------
    encoding : str
    leave_out : frozenset of str
        Content ids of shards that are not listed.
    """

    encoding: str = "utf-8"
    leave_out: frozenset[str] = frozenset()

    def shards(self) -> list[Shard]:
        return [shard for shard in super().shards() if shard.content_id not in self.leave_out]

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError as error:
            msg = f"encoding {self.encoding!r}"
            raise ConfigError(msg, "a name that Python knows, such as 'utf-8'") from error

    def parts(self, path: Path) -> list[tuple[int, int]]:
        size = path.stat().st_size
        return [(0, size)] if size else []

    def documents(self, shard: Shard) -> list[str]:
        return [_decode(shard, read_unchanged(shard), self.encoding)]


@dataclass(frozen=True)
class JsonLines(Documents):
    """Each line is one document: a JSON object with its text under `field`.

    Files are cut into shards of about `shard_bytes` at line ends.

    Parameters
    ----------
    field : str
    split : {'train', 'validation', 'test'}, optional
        Keep the documents of one part: a hash of the text decides, so that equal texts are never on both sides.
    fractions : tuple of float
        Shares of train, validation and test.
    shard_bytes : int
    """

    field: str = "text"
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    shard_bytes: int = 2**20

    def parts(self, path: Path) -> list[tuple[int, int]]:
        size = path.stat().st_size
        cuts = [0]
        with path.open("rb") as file:
            while cuts[-1] < size:
                file.seek(min(cuts[-1] + self.shard_bytes, size))
                file.readline()
                cuts.append(file.tell())
        return list(itertools.pairwise(cuts))

    def documents(self, shard: Shard) -> list[str]:
        texts = []
        for number, line in enumerate(_decode(shard, read_unchanged(shard), "utf-8").split("\n"), start=1):
            if line.strip():
                texts.append(self._text(shard, number, line))
        return [text for text in texts if self.split in (None, split_of(text, self.fractions))]

    def _text(self, shard: Shard, number: int, line: str) -> str:
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            msg = f"{shard.key}, line {number} of the shard: not JSON ({error})"
            raise ShardError(msg, "one JSON object a line") from error
        text = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            found = f"fields {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
            msg = f"{shard.key}, line {number} of the shard: {found}"
            raise ShardError(msg, f"a string under {self.field!r}", "set `field` in the config's [corpus]")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, which no tokenizer takes
            msg = f"{shard.key}, line {number} of the shard: {text[error.start]!r} is half a surrogate pair"
            raise ShardError(msg, "Unicode text", "leave the line out, or skip bad shards") from error
        return text


def _decode(shard: Shard, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        msg = f"{shard.key}: byte {data[error.start]:#04x} at offset {shard.start + error.start} is not {encoding}"
        raise ShardError(msg, f"{encoding} text", "set `encoding`, leave the file out, or skip bad shards") from error
