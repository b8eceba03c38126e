"""Archives of texts: tar files as WebDataset writes them, where members of one stem are the fields of a document.

`0007.txt` and `0007.json` are one document: its text is the member with the ending that is asked for, and the fields of
a JSON object beside it are columns, for labels and deletions. Nothing is unpacked to disk. Floor 4.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from streamfit.corpus.base import Split, read_unchanged, split_of
from streamfit.corpus.labels import NO_LABELS, Labels, combinations
from streamfit.corpus.text import CutFiles, Placed, decode, decompressed, is_compressed
from streamfit.corpus.values import Select, json_value
from streamfit.errors import CorpusError, ShardError
from streamfit.plan import Shard

_BLOCK = 512


class _Document(NamedTuple):
    """Name of the text's member, its bytes, and the columns of its document."""

    name: str
    data: bytes | None
    columns: dict[str, Any]


@dataclass(frozen=True)
class TarText(CutFiles):
    """Texts in tar files, which are cut into shards of about `shard_bytes` between documents.

    Parameters
    ----------
    field : str
        Ending of the members that are texts, without its dot.
    encoding : str
    split : {'train', 'validation', 'test'}, optional
        Keep the documents of one part: a hash of the text decides.
    fractions : tuple of float
        Shares of train, validation and test.
    shard_bytes : int
        Compressed archives are one shard each.
    labels : Labels
        Its columns are `key`, a document's stem, and the fields of the JSON objects beside texts.
    """

    field: str = "txt"
    encoding: str = "utf-8"
    split: Split | None = None
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    shard_bytes: int = 2**20
    labels: Labels = NO_LABELS

    def parts(self, path: Path) -> list[tuple[int, int]]:
        size = path.stat().st_size
        if is_compressed(str(path)):
            return [(0, size)]
        cuts, key = [0], ""
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    if _key(member.name) != key and member.offset - cuts[-1] >= self.shard_bytes:
                        cuts.append(member.offset)
                    key = _key(member.name)
        except (tarfile.TarError, OSError):
            return [(0, size)]  # to be refused when it is read
        return list(zip(cuts, [*cuts[1:], size], strict=True))

    def numbered(self, shard: Shard) -> Iterator[tuple[int, str]]:
        return ((at, text) for at, _, text in self._texts(shard))

    def placed(self, shard: Shard) -> Iterator[Placed]:
        archive = self.file_of(shard)
        return (Placed(f"{archive}/{name}", None, text) for _, name, text in self._texts(shard))

    def _texts(self, shard: Shard) -> Iterator[tuple[int, str, str]]:
        """Positions, names of members and texts of the documents of the split."""
        for at, found in self._selected(shard):
            if found.data is not None:
                text = decode(shard, found.data, self.encoding)
                if self.split in (None, split_of(text, self.fractions)):
                    yield at, found.name, text

    def positions(self, shard: Shard, column: str, values: frozenset[str]) -> tuple[int, ...]:
        return tuple(at for at, found in self._selected(shard) if json_value(found.columns, column) in values)

    def labelled(self, whole: Shard, name: str) -> list[Shard]:
        if self.labels.keys:
            try:
                return self.labels.cut(whole, name, _combinations(self, whole, self.labels.keys))
            except ShardError:
                pass  # a part that cannot be read is listed whole, and refused or skipped when it is read
        return [self.labels.label(whole, name)]

    def _selected(self, shard: Shard) -> Iterator[tuple[int, _Document]]:
        """Positions and documents of a shard: those with a text, without those that are left out."""
        without = frozenset(shard.without)
        for at, found in enumerate(self._all(shard)):
            if at not in without and all(json_value(found.columns, key) == value for key, value in shard.select):
                yield at, found

    def _all(self, shard: Shard) -> list[_Document]:
        data = read_unchanged(shard)
        packed = is_compressed(shard.uri)
        if packed:
            data = decompressed(shard, data)
        whole = packed or Path(shard.uri).stat().st_size == shard.stop
        if whole and data[-_BLOCK:].strip(b"\0"):
            raise _damaged(shard, "no end of the archive")
        documents: dict[str, _Document] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
                for member in archive:
                    if member.isfile():
                        file = archive.extractfile(member)
                        assert file is not None  # of what is a file
                        self._note(documents, shard, member, file.read())
        except (tarfile.TarError, OSError, EOFError) as error:
            raise _damaged(shard, str(error)) from error
        return [found for found in documents.values() if found.data is not None]

    def _note(self, documents: dict[str, _Document], shard: Shard, member: tarfile.TarInfo, data: bytes) -> None:
        key, ending = _key(member.name), _ending(member.name)
        found = documents.setdefault(key, _Document("", None, {"key": key}))
        if len(data) < member.size:
            raise _damaged(shard, f"{member.name} ends after {len(data):,} of {member.size:,} bytes")
        if ending == self.field:
            documents[key] = found._replace(name=member.name, data=data)
        elif ending == "json":
            try:
                fields = json.loads(data)
            except (ValueError, RecursionError) as error:
                msg = f"{shard.key}, {member.name}: not JSON ({error})"
                raise ShardError(msg, "a JSON object beside each text") from error
            if isinstance(fields, dict):
                documents[key] = found._replace(columns={**fields, "key": key})


def endings_within(path: Path, n_members: int = 1000) -> Counter[str]:
    """How often each ending occurs among the first members of an archive, compressed or not.

    Raises
    ------
    CorpusError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            packed: Any = pa.CompressedInputStream(pa.PythonFile(file), "zstd") if path.suffix == ".zst" else file
            with tarfile.open(fileobj=packed, mode="r|*") as archive:
                return Counter(_ending(member.name) for member in islice(archive, n_members) if member.isfile())
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        msg = f"{path}: {error}"
        raise CorpusError(msg, "a whole tar file") from error


def _ending(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2]


def _key(name: str) -> str:
    """What members of one document share: the path up to the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _damaged(shard: Shard, what: str) -> ShardError:
    return ShardError(f"{shard.key}: {what}", "a whole tar file", "write the file again, or skip bad shards")


@cache
def _combinations(source: TarText, whole: Shard, keys: tuple[str, ...]) -> tuple[tuple[Select, int], ...]:
    """Sets of label values in the documents of a part; its content id tells when they must be read again."""
    records = [found.columns for _, found in source._selected(whole)]
    return combinations(whole.key, {key: pa.array([json_value(r, key) for r in records], pa.string()) for key in keys})
