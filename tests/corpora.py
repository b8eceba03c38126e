"""Small corpora of every kind with the same twelve documents, written so that some of them have never been there."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamfit.config_corpus import TextSection
from streamfit.corpus import Files, ParquetTable, Source
from streamfit.counts import Tables, add_tables
from streamfit.engine import accumulate
from streamfit.moments import Moments
from streamfit.store import Header, Store, verify
from streamfit.tables import Block, prepare_table
from streamfit.text import LanguageSettings, prepare, token_source

N_DOCS = 12
X = ("x0", "x1", "x2")
GROUPS = ((40, 4500), (25, 10), (30,))
"""Rows of each row group of each file. One is longer than a block, and one is a single document."""
LONE = 7
"""That document."""


@dataclass(frozen=True)
class Kind:
    """A kind of corpus: how it is written without some documents, all else cut as before, and how it is read."""

    name: str
    header: Callable[[], Header]
    write: Callable[[Path, Iterable[int]], None]
    sources: Callable[[Path], list[Source]]

    def counted(self, where: Path, folder: Path, **options) -> Store:
        """A store that counted a folder."""
        store = Store.create(where, self.header(), max_live=options.pop("max_live", 64))
        for source in self.sources(folder):
            accumulate(store, source, **options)
        return store

    def never_saw(self, where: Path, gone: Iterable[int]) -> Store:
        """A store with the same header that counted everything but some documents."""
        self.write(where / "corpus", gone)
        return self.counted(where / "store", where / "corpus")


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """Without waiting for the disk, which is half the time of so many small commits; no test here pulls the plug."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


def name_of(doc: int) -> str:
    """Value of the column `doc_id`, and the name of the file where a file is a document."""
    return f"d{doc}.txt"


def found(folder: Path) -> bool:
    """Whether anything was written."""
    return any(path.is_file() for path in folder.rglob("*"))


def sums(store: Store) -> tuple:
    """All that a store holds: rows, every limb of the moments, every table of counts."""
    return sums_of(store.moments(), [*store.tables()])


def sums_of(moments: Moments, tables: list[Tables]) -> tuple:
    """Moments and added tables, to be compared."""
    counts = add_tables(tables, [1] * len(tables))
    return moments, {name: (k.tolist(), c.tolist()) for name, (k, c) in counts.items() if len(c)}


def same(store: Store, other: Store) -> bool:
    """Whether two stores hold the same sums, bit for bit, and are whole."""
    found = verify(store)
    assert not found.faults
    return sums(store) == sums(other) and found.digest == verify(other).digest


def key_to_id(store: Store) -> dict[str, str]:
    """Content ids of counted shards by their keys."""
    return {shard.key: content for content, shard in store.counted().items()}


# Tables


@cache
def columns() -> dict[str, np.ndarray]:
    """All rows, file after file and group after group."""
    rng = np.random.default_rng(3)
    n_rows = sum(map(sum, GROUPS))
    x = rng.normal(size=(n_rows, len(X))) * [0.1, 1.0, 30.0] + [0, 5, -9]
    docs = rng.integers(0, N_DOCS, n_rows)
    docs[4565:4575] = LONE
    return {
        **{name: x[:, j] for j, name in enumerate(X)},
        "y": x @ [1.0, -2.0, 0.5] + rng.normal(size=n_rows),
        "k": rng.integers(0, 4, n_rows),
        "w": rng.uniform(0.1, 3.0, n_rows),
        "region": np.where(docs % 3 == 0, "EU", "US"),
        "doc_id": np.array([name_of(doc) for doc in docs]),
    }


def tables(gone: Iterable[int] = ()) -> Iterator[tuple[str, list[pa.Table]]]:
    """Name and row groups of each file, without the rows of some documents."""
    names, table, lo = [name_of(doc) for doc in gone], pa.table(columns()), 0
    kept = ~np.isin(columns()["doc_id"], names)
    for i, sizes in enumerate(GROUPS):
        edges = np.cumsum([lo, *sizes]).tolist()
        pairs = itertools.pairwise(edges)
        yield f"part-{i}.parquet", [table.slice(a, b - a).filter(pa.array(kept[a:b])) for a, b in pairs]
        lo = edges[-1]


def write_groups(path: Path, parts: Iterable[pa.Table]) -> None:
    """A Parquet file with a row group for each table that has rows."""
    parts = list(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, parts[0].schema) as file:
        for part in parts:
            if part.num_rows:
                file.write_table(part, row_group_size=part.num_rows)


def write_tables(folder: Path, gone: Iterable[int] = ()) -> None:
    for name, parts in tables(gone):
        write_groups(folder / name, parts)


def table_kind(name: str, precision: str = "float64", target: str = "y", **more) -> Kind:
    def sources(folder: Path) -> list[Source]:
        return [ParquetTable(Files(str(folder)), X, (target,), **more)]

    @cache
    def header() -> Header:
        with tempfile.TemporaryDirectory() as folder:
            write_tables(Path(folder))
            settings = {"precision": precision, "n_folds": 3, "seed": 0, "sample_rows": 500}
            return prepare_table(sources(Path(folder))[0], [Block("fourier", 6), Block("linear")], **settings)

    return Kind(name, header, write_tables, sources)


# Documents


@cache
def texts() -> list[str]:
    rng = np.random.default_rng(4)
    words = ["sum", "once", "solve", "at", "the", "end", "gram", "store", "naïve", "\n"]
    return [" ".join([f"{doc}:", *rng.choice(words, size=20 + 5 * doc)]) for doc in range(N_DOCS)]


def record_of(doc: int) -> dict[str, str]:
    return {"doc_id": name_of(doc), "text": texts()[doc], "region": "EU" if doc % 3 == 0 else "US"}


def write_text(folder: Path, gone: Iterable[int] = ()) -> None:
    folder.mkdir(parents=True)
    for doc in {*range(N_DOCS)} - {*gone}:
        (folder / name_of(doc)).write_text(texts()[doc])


def write_lines(folder: Path, gone: Iterable[int] = ()) -> None:
    """Two files; where a document has never been, there is a blank line of its length, so that cuts stay."""
    folder.mkdir(parents=True)
    for i, docs in enumerate((range(8), range(8, N_DOCS))):
        lines = [json.dumps(record_of(doc)) for doc in docs]
        blank = [" " * len(line) if doc in {*gone} else line for doc, line in zip(docs, lines, strict=True)]
        (folder / f"part-{i}.jsonl").write_text("".join(f"{line}\n" for line in blank))


def write_datasets(folder: Path, gone: Iterable[int] = ()) -> None:
    """Two saved data sets, a shard each."""
    for i, docs in enumerate((range(8), range(8, N_DOCS))):
        kept = [record_of(doc) for doc in docs if doc not in {*gone}]
        if kept:
            datasets.Dataset.from_list(kept).save_to_disk(folder / f"set-{i}")


def text_kind(kind: str, write: Callable[[Path, Iterable[int]], None]) -> Kind:
    def section(root: Path) -> TextSection:
        return TextSection(root=str(root), kind=kind, shard_bytes=600, split=(0.9, 0.1, 0.0))

    def sources(folder: Path) -> list[Source]:
        roots = sorted(folder.glob("set-*")) if kind == "dataset" else [folder]
        return [token_source(header(), section(root).documents("train")) for root in roots]

    @cache
    def header() -> Header:
        here = section(Path())
        reading = {
            "files": kind,
            **here.model_dump(include={"encoding", "field", "shard_bytes"}),
            "split": [*here.split],
        }
        settings = {**asdict(_SETTINGS), **reading}
        frozen = _language()
        return replace(frozen, reader={**frozen.reader, "settings": settings})

    return Kind(kind, header, write, sources)


_SETTINGS = LanguageSettings(
    vocab_size=280, n_context=3, embedding_dims=24, n_centers=8, ngram_order=3, n_folds=3, precision="float32"
)


@cache
def _language() -> Header:
    """One header for all kinds: they hold the same texts."""
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder) / "text")
        return prepare(TextSection(root=f"{folder}/text", split=(0.9, 0.1, 0.0)).documents("train"), _SETTINGS)


KINDS = {
    kind.name: kind
    for kind in (
        table_kind("float32", "float32"),
        table_kind("float64"),
        table_kind("weights", weight="w"),
        table_kind("classes", "float32", target="k", n_classes=4),
        text_kind("text", write_text),
        text_kind("jsonl", write_lines),
        text_kind("dataset", write_datasets),
    )
}


@cache
def _counted_once(name: str, group_rows: int | None) -> tempfile.TemporaryDirectory[str]:
    kept = tempfile.TemporaryDirectory()
    folder, kind = Path(kept.name) / "now", KINDS[name]
    kind.write(folder / "corpus", ())
    kind.counted(folder / "store", folder / "corpus", group_rows=group_rows)
    shutil.copytree(folder, folder.with_name("before"))
    return kept


def counted_anew(name: str, group_rows: int | None = None) -> tuple[Path, Store]:
    """A corpus in a folder, and the store beside it that counted it, both as they were before any test changed them.

    Counted once and put back into the same place, since ledgers hold the addresses of files.
    """
    folder = Path(_counted_once(name, group_rows).name) / "now"
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("before"), folder)
    return folder / "corpus", Store(folder / "store")


@cache
def never_saw(name: str, gone: frozenset[int]) -> Store:
    """A store with the header of a kind that never saw some documents; for reading only."""
    return KINDS[name].never_saw(Path(tempfile.mkdtemp(dir=_counted_once(name, None).name)), gone)


def same_as_of(store: Store, folder: Path) -> bool:
    """Whether a store holds what the tables of a folder sum to."""
    where = folder.with_name("reference")
    shutil.rmtree(where, ignore_errors=True)
    return same(store, KINDS["float64"].counted(where, folder))
