"""Places of documents are those that other readers find them at, however files are cut, split, labelled and packed."""

from __future__ import annotations

import gzip
import itertools
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from streamfit.cli_text import documents_of
from streamfit.corpus import Documents, Files, JsonLines, Labels, Placed, TextFiles
from streamfit.corpus.saved import SavedDataset
from streamfit.corpus.table_text import TableText
from streamfit.corpus.tar import TarText
from streamfit.text import LanguageSettings, Tokenizer, prepare
from streamfit.text.origins import origins_of
from tests.test_archives import write_tar

TEXTS = [f"document {i} of some,\nwhich says {i * 7919 % 101}" for i in range(150)]
SITES = [f"s{i % 3}" for i in range(150)]


def write_lines(path: Path) -> Path:
    """With a blank line before every tenth document, which is a line as well."""
    lines = [json.dumps({"text": text, "site": site}) for text, site in zip(TEXTS, SITES, strict=True)]
    data = "".join(("" if i % 10 else " \n") + line + "\n" for i, line in enumerate(lines))
    path.write_bytes(gzip.compress(data.encode()) if path.suffix == ".gz" else data.encode())
    return path


def write_table(path: Path) -> Path:
    table = pa.table({"text": TEXTS, "site": SITES})
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=40)
    else:
        pa.feather.write_feather(table, path)
    return path


def found_at(root: Path, file: str, number: int | None) -> str:
    """The text at a place, by the libraries of its format alone."""
    path = root / file
    if ".tar/" in file:
        archive, _, member = file.partition(".tar/")
        with tarfile.open(root / f"{archive}.tar") as opened:
            return opened.extractfile(member).read().decode()
    if path.is_dir():
        return datasets.load_from_disk(str(path))[number]["text"]
    if path.suffix == ".parquet":
        return pq.read_table(path)["text"][number].as_py()
    if path.suffix == ".arrow":
        return pa.feather.read_table(path)["text"][number].as_py()
    if number is None:
        return path.read_bytes().decode()
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return json.loads(data.decode().split("\n")[number])["text"]


def made(kind: str, root: Path) -> Documents:
    """A corpus of one kind, in several shards where its files can be cut."""
    if kind == "tar":
        return write_tar(root / "t.tar")
    if kind == "saved":
        datasets.Dataset.from_dict({"text": TEXTS, "site": SITES}).save_to_disk(root / "d")
        return SavedDataset(Files(str(root / "d")), shard_rows=64)
    if kind in ("parquet", "arrow"):
        write_table(root / f"t.{kind}")
        return TableText(Files(str(root)), kind=kind)
    if kind == "text":
        (root / "sub").mkdir()
        for i, text in enumerate(TEXTS[:5]):
            (root / "sub" / f"#{i}").write_bytes(text.encode())
        return TextFiles(Files(str(root)))
    write_lines(root / f"t.{kind}")
    return JsonLines(Files(str(root)), shard_bytes=700)


def placed(documents: Documents) -> list[Placed]:
    return [each for shard in documents.shards() for each in documents.placed(shard)]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "arrow", "tar", "saved", "text"])
def test_each_document_is_where_it_is_said_to_be(kind, tmp_path):
    documents = made(kind, tmp_path)
    everything = placed(documents)
    assert len({(each.file, each.number) for each in everything}) == len(everything)
    assert [each.text for each in everything] == [t for s in documents.shards() for t in documents.documents(s)]
    for each in everything:
        assert found_at(tmp_path, each.file, each.number) == each.text
    if kind in ("jsonl", "parquet", "tar", "saved"):
        assert len(documents.shards()) > 2, "cut"
    # What is left out, by a split, by a label or by hand, moves nothing that stays.
    first, *_ = documents.shards()
    assert list(documents.placed(replace(first, without=(0,)))) == list(documents.placed(first))[1:]
    if kind == "text":
        return
    parts = [placed(replace(documents, split=split)) for split in ("train", "validation", "test")]
    assert all(parts)
    assert sorted(itertools.chain(*parts), key=str) == sorted(everything, key=str)
    labelled = replace(documents, labels=Labels(columns=("region" if kind == "tar" else "site",)))
    assert len(labelled.shards()) > len(documents.shards())
    assert sorted(placed(labelled), key=str) == sorted(everything, key=str)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_centers_of_texts_in_files_stand_where_they_are_said_to_stand(kind, tmp_path):
    """The store's header keeps places of training documents, and a reader of the file finds each center there."""
    documents = replace(made(kind, tmp_path), split="train", labels=Labels(columns=("site",)))
    settings = LanguageSettings(
        vocab_size=280, n_context=3, embedding_dims=24, n_centers=20, ngram_order=2, n_folds=1
    )  # fmt: skip
    header = prepare(documents, settings)
    centers = origins_of({"centers": json.loads(header.files["centers.json"])})
    assert len(centers) == 20
    numbers = set()
    for origin in centers:
        assert origin.file == f"t.{kind}"
        text = found_at(tmp_path, origin.file, origin.document).encode()
        assert origin.place == f"t.{kind} [{origin.document}]:{origin.offset}"
        before = documents_tokens(header, origin.tokens)
        assert text[: origin.offset].decode().endswith(before)
        numbers.add(origin.document)
    assert max(numbers) > 40, "of all parts"


def documents_tokens(header, tokens) -> str:
    return Tokenizer(header.files["tokenizer.json"].decode()).decode([t for t in tokens if t])


def test_the_command_line_reads_places_of_any_file(tmp_path):
    for kind in ("jsonl", "parquet"):
        write = write_lines if kind == "jsonl" else write_table
        found = placed(documents_of(str(write(tmp_path / f"t.{kind}"))))
        assert [found_at(tmp_path, each.file, each.number) for each in found] == TEXTS
    assert isinstance(documents_of(str(tmp_path / "t.tar")), TarText)
