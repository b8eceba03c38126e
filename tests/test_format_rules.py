"""docs/store-format.md, rule by rule: digests, hashes and content ids in its words, and that it names everything."""

import json
import struct
from dataclasses import fields
from inspect import isabstract

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from store_helpers import header_of, shard_of
from test_format import LIMBS, PAGE, SUMS, add, b3, history, sha256

from streamfit.corpus import Files, JsonLines, Labels, ParquetTable, TextFiles
from streamfit.corpus.saved import SavedDataset
from streamfit.features import FeatureMap
from streamfit.store import (
    Pin,
    Record,
    Refusal,
    Removal,
    Segment,
    Store,
    export_dense,
    import_dense,
    verify,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return history(tmp_path_factory.mktemp("history"))


def serialised(value):
    """JSON in the words of the page."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{serialised(key)}: {serialised(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(serialised, value)) + "]"
    if isinstance(value, int):
        return str(value)
    short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\f": "\\f", "\b": "\\b"}
    units = ((c, struct.unpack(f"<{len(u) // 2}H", u)) for c in value if (u := c.encode("utf-16-le")))
    return (
        '"'
        + "".join(short.get(c) or (c if " " <= c <= "~" else "".join(f"\\u{n:04x}" for n in u)) for c, u in units)
        + '"'
    )


@given(text=st.text(), name=st.text())
def test_the_digest_of_a_record(text, name):
    """In the words of the page, for any text that people may write into a record."""
    segments = (Segment("id", 1, name, 7, 1, "f" * 64, (("time", text),)),)
    record = Record(3, "h", "header/x", segments, (Refusal("k", "c", text),), pins=(Pin(name, 2),), who=name)
    outer = json.loads(record.to_bytes())
    assert outer["sha256"] == sha256(serialised(outer["body"]).encode())
    assert Record.from_bytes(record.to_bytes(), "here") == record


def test_every_record_of_a_store_has_that_digest(store):
    """Removals, reasons and labels included."""
    for file in (store.place.local / "_log").iterdir():
        outer = json.loads(file.read_bytes())
        assert outer["sha256"] == sha256(serialised(outer["body"]).encode())


def test_the_content_hash_of_a_header(store, tmp_path):
    """Attributes and arrays, hashed by the page's rule; also of a header with files."""
    with_files = Store.create(tmp_path / "other", header_of(files={"tokenizer.json": b"\x00{}"}, reader={"share": 0.1}))
    for each in (store, with_files):
        group = zarr.open_group(each.place.local, mode="r")[each.head().header_at]
        attributes = dict(group.attrs)
        names = attributes.pop("arrays")
        digest = json.dumps(attributes, sort_keys=True).encode()
        for name in names:
            array = group[name][...]
            digest += f"{name}:{array.dtype.str}:{array.shape}".encode() + array.tobytes()
        assert sha256(digest) == each.head().header
        assert names == sorted(names)


def test_the_digest_of_sums(tmp_path):
    """The steps of canonical limbs, for one that has a coarse limb and one that does not."""
    for scale in (1.0, 2.0**26):
        store = Store.create(tmp_path / f"{scale}", header_of())
        add(store, 0, scale)
        group = zarr.open_group(tmp_path / f"{scale}", mode="r")[f"segments/{store.head().segments[0].id}"]
        digest = b"50"
        for name in SUMS:
            steps = [
                (t, group[name + limb][...])
                for t, limb in ((20, "_coarse"), (-16, ""), (-52, "_fine"))
                if name + limb in group
            ]
            digest += f"{name} {steps[0][0]}".encode() + b"".join((a * 2.0**-t).tobytes() for t, a in steps)
            assert all((np.abs(a) <= 2.0 ** (t + 35)).all() for t, a in steps[1:])
        assert sha256(digest) == verify(store).digest


def test_content_ids(tmp_path):
    """Of row groups, text, JSON lines, data sets, selections and dense arrays, each by the page's rule."""
    pq.write_table(
        pa.table({"a": [1.0, 2.0, 3.0, 4.0], "r": ["EU", "EU", "US", "EU"]}), tmp_path / "t.parquet", row_group_size=2
    )
    whole = [p.content_id for p in ParquetTable(Files(str(tmp_path / "t.parquet")), ("a",), ("a",)).shards()]
    data, found = (tmp_path / "t.parquet").read_bytes(), pq.read_metadata(tmp_path / "t.parquet")
    for g, content in enumerate(whole):
        columns = [found.row_group(g).column(i) for i in range(2)]
        starts = [min(c.dictionary_page_offset or c.data_page_offset, c.data_page_offset) for c in columns]
        stop = max(s + c.total_compressed_size for s, c in zip(starts, columns, strict=True))
        assert content == b3(f"a: double\nr: string\n{b3(data[min(starts) : stop])}".encode())
    cut = ParquetTable(Files(str(tmp_path / "t.parquet")), ("a",), ("a",), labels=Labels(columns=("r",))).shards()
    select = [f'[["r", "{value}"]]' for value in ("EU", "US")]
    assert [s.content_id for s in cut] == [whole[0], *(b3(f"{whole[1]}\n{s}".encode()) for s in select)]
    assert [s.within for s in cut] == ["", whole[1], whole[1]]

    (tmp_path / "a.txt").write_bytes(b"some text")
    lines = b'{"text": "one"}\n{"text": "two"}\n\n{"text": "three"}\n'
    (tmp_path / "b.jsonl").write_bytes(lines)
    assert [s.content_id for s in TextFiles(Files(str(tmp_path / "a.txt"))).shards()] == [b3(b"some text")]
    parts = JsonLines(Files(str(tmp_path / "b.jsonl")), shard_bytes=16).shards()
    assert [(s.start, s.stop) for s in parts] == [(0, 32), (32, len(lines))]
    assert [s.content_id for s in parts] == [b3(lines[:32]), b3(lines[32:])]

    datasets.Dataset.from_dict({"text": ["one", "zwö"], "r": ["EU", "US"]}).save_to_disk(str(tmp_path / "d"))
    texts = [struct.pack("<Q", len(t)) + t for t in (b"one", "zwö".encode())]
    (one,) = SavedDataset(Files(str(tmp_path / "d"))).shards()
    assert one.content_id == b3(b"".join(texts))
    both = SavedDataset(Files(str(tmp_path / "d")), labels=Labels(columns=("r",))).shards()
    inner = [b3(f"{one.content_id}\n{s}".encode()) for s in select]
    assert [s.content_id for s in both] == [b3(f"{i}\n{b3(t)}".encode()) for i, t in zip(inner, texts, strict=True)]

    store = Store.create(tmp_path / "s", header_of())
    add(store, 0)
    export_dense(store, tmp_path / "s.npz")
    other = Store.create(tmp_path / "other", header_of())
    segment = import_dense(other, tmp_path / "s.npz", "elsewhere")
    with np.load(tmp_path / "s.npz") as file:
        names = sorted(set(file.files) - {"features", "header", "contents"})
        expected = b3(b"".join(name.encode() + file[name].astype("<f8").tobytes() for name in names))
    assert [s.content_id for s in other.ledger(segment)] == [expected]
    assert segment.fold == int(expected[:15], 16) % other.header.n_folds


def test_the_page_names_everything(store, tmp_path):
    """Fields of records, columns, attributes, arrays and kinds of features: none can be added without a word there."""
    path = store.place.local
    names = {"version"} | {f.name for kind in (Record, Segment, Refusal, Removal, Pin) for f in fields(kind)}
    for file in (*(path / "ledgers").iterdir(), *(path / "removals").iterdir()):
        names |= {*pq.read_schema(file).names}
    names |= {name + limb for name in SUMS for limb in LIMBS}
    root = zarr.open_group(path, mode="r")
    names |= {*root[store.head().header_at].attrs}
    names |= {name for name in root[store.head().header_at].attrs["arrays"] if name.startswith("frame/")}
    ngram = {"ngram": (np.zeros((1, 3), np.int32), np.ones(1, np.int64))}
    segment = store.write_segment(store.moments(), [shard_of(1)], [50], ngram)
    names |= {*root[f"segments/{segment.id}"].attrs, *root[f"segments/{segment.id}"].attrs["arrays"]}
    export_dense(store, tmp_path / "dense.npz")
    with np.load(tmp_path / "dense.npz") as file:
        names |= {*file.files}
    kinds = [*FeatureMap.__subclasses__()]
    for kind in kinds:
        kinds += kind.__subclasses__()
    named = [kind for kind in kinds if kind.__module__.startswith("streamfit.") and not isabstract(kind)]
    assert {"RBF", "Concat"} <= {kind.__name__ for kind in named}
    names |= {kind.__name__ for kind in named}
    assert sorted(name for name in names if f"`{name}`" not in PAGE) == []
