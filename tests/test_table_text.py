"""Texts in columns of Parquet and Arrow are the texts that JSON lines of them are: split, labelled, found, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from cli_runs import ok
from languages import fitted

from streamfit.cli_text import documents_of
from streamfit.config import LanguageProblem, load_problem
from streamfit.corpus import Files, JsonLines, Labels
from streamfit.corpus.openings import put_file
from streamfit.corpus.table_text import TableText
from streamfit.errors import ShardChangedError, ShardError
from streamfit.starter import starter
from streamfit.store import Store

TEXTS = [f"document {i}: a line\nand another" for i in range(90)] + [None, ""]
ROWS = {"text": TEXTS, "site": [f"s{i % 3}" for i in range(92)], "n": [*range(92)]}


def write(path: Path, **changed: object) -> Path:
    table = pa.table(ROWS | changed)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=40)
    else:
        pa.feather.write_feather(table, path)
    return path


def all_texts(source: TableText | JsonLines) -> list[str]:
    return [text for shard in source.shards() for text in source.documents(shard)]


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_texts_are_those_of_lines_of_json(tmp_path, ending, kind):
    write(
        tmp_path / f"t.{ending}", text=pa.array(TEXTS).cast(kind) if "dict" not in str(kind) else pa.array(TEXTS, kind)
    )
    lines = "".join(json.dumps({"text": text or ""}) + "\n" for text in TEXTS)
    (tmp_path / "t.jsonl").write_text(lines)
    for split in (None, "train", "validation", "test"):
        found = documents_of(str(tmp_path / f"t.{ending}"))
        assert isinstance(found, TableText)
        expected = JsonLines(Files(str(tmp_path / "t.jsonl")), split=split)
        assert all_texts(replace(found, split=split)) == all_texts(expected)


def test_columns_label_and_find_documents(tmp_path):
    write(tmp_path / "t.parquet")
    labels = Labels(columns=("site",))
    source = TableText(Files(str(tmp_path)), labels=labels)
    shards = source.shards()
    assert len(shards) == 9  # three row groups of three sites
    for shard in shards:
        (site,) = {value for name, value in shard.labels if name == "site"}
        texts = source.documents(shard)
        assert texts == [
            t or "" for t, s, n in zip(*ROWS.values(), strict=True) if s == site and n // 40 == shard.start
        ]
    whole = TableText(Files(str(tmp_path)))
    first = whole.shards()[0]
    positions = whole.positions(first, "n", frozenset(["3", "39", "40"]))
    assert positions == (3, 39)
    left = whole.documents(replace(first, without=positions))
    assert left == [t for i, t in enumerate(TEXTS[:40]) if i not in positions]


def test_what_is_no_text_is_told(tmp_path):
    write(tmp_path / "t.parquet")
    numbers, none = (TableText(Files(str(tmp_path)), field=field) for field in ("n", "body"))
    with pytest.raises(ShardError, match=r"column 'n' has type int64; expected strings; set `field`"):
        all_texts(numbers)
    with pytest.raises(ShardError, match=r"no column 'body' among text, site, n; expected a column of texts"):
        all_texts(none)
    source = TableText(Files(str(tmp_path)))
    shards = source.shards()
    write(tmp_path / "t.parquet", text=["another"] * 92)
    with pytest.raises(ShardChangedError, match="content changed"):
        source.documents(shards[0])


def test_a_language_model_of_a_column_of_texts(tmp_path, s3):
    """From data to a model by the starter's config, on a disk; what is in a bucket gives the same counts."""
    texts = [Path(shard.uri).read_text() for shard in fitted()[0].corpus.documents("train").shards()]
    pieces = [text[lo : lo + 2000] for text in texts for lo in range(0, len(text), 2000)]
    (tmp_path / "data").mkdir()
    table = pa.table({"id": [*range(len(pieces))], "text": pieces})
    for i in range(2):
        half = table.slice(i * len(pieces) // 2, len(pieces) // 2)
        pq.write_table(half, tmp_path / "data" / f"{i}.parquet", row_group_size=20)
    text = starter(str(tmp_path / "data"), run=str(tmp_path / "run"))
    small = {"vocab_size = 4096": "vocab_size = 300", "embedding_dims = 128": "embedding_dims = 48"}
    small |= {"n_centers = 256": "n_centers = 10", "folds = 5": "folds = 2"}
    for old, new in small.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "lm.toml").write_text(text)
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    problem = load_problem(tmp_path / "lm.toml")
    assert isinstance(problem, LanguageProblem)
    assert (problem.corpus.kind, problem.corpus.field) == ("parquet", "text")
    assert "perplexity" in ok("fit", tmp_path / "lm.toml", "--machine", tmp_path / "serial.toml")
    ok("evaluate", tmp_path / "run" / "model", tmp_path / "data" / "0.parquet")
    there = s3()
    for path in sorted((tmp_path / "data").iterdir()):
        put_file(f"{there}/texts/{path.name}", path)
    far = text.replace(f'"{tmp_path / "data"}"', f'"{there}/texts"').replace(
        str(tmp_path / "run"), str(tmp_path / "far")
    )
    (tmp_path / "s3.toml").write_text(far)
    ok("fit", tmp_path / "s3.toml", "--machine", tmp_path / "serial.toml")
    made = [(tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "far")]
    assert made[0] == made[1]
    before = Store(tmp_path / "run" / "store").head().n_rows
    ok("forget", tmp_path / "run", "--where", "id=1", "--machine", tmp_path / "serial.toml")
    assert Store(tmp_path / "run" / "store").head().n_rows < before
