"""Documents that share a file are split by their own text, and saved data sets read like any other corpus."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from streamfit.config_corpus import TextSection
from streamfit.corpus import Files, JsonLines, Labels, TextFiles
from streamfit.corpus.saved import SavedDataset
from streamfit.errors import CorpusError, ShardChangedError, ShardError

TEXTS = [f"document {i}\nsays {i * i}" for i in range(200)]
SPLITS = ("train", "validation", "test")
REGION = Labels(columns=("region",))
NONE = Labels()


@pytest.fixture(params=["jsonl", "dataset"])
def section(request: pytest.FixtureRequest, tmp_path: Path) -> TextSection:
    if request.param == "jsonl":
        lines = "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)
        (tmp_path / "d.jsonl").write_text(lines)
        return TextSection(root=str(tmp_path / "d.jsonl"), kind="jsonl", field="body")
    datasets.Dataset.from_dict({"body": TEXTS, "other": range(200)}).save_to_disk(tmp_path / "d")
    return TextSection(root=str(tmp_path / "d"), kind="dataset", field="body")


def _read(section: TextSection, split: str) -> list[str]:
    documents = section.documents(split)
    return [text for shard in documents.shards() for text in documents.documents(shard)]


def test_parts_are_disjoint_and_cover_the_corpus(section: TextSection):
    parts = {split: _read(section, split) for split in SPLITS}
    assert sorted(text for part in parts.values() for text in part) == sorted(TEXTS)
    assert 130 < len(parts["train"]) < 190


def test_shards_are_the_same_for_every_part(section: TextSection):
    """A store that counted the training part must recognise the shard under any of them."""
    ids = [[s.content_id for s in section.documents(split).shards()] for split in SPLITS]
    assert ids[0] == ids[1] == ids[2]


def test_equal_texts_stay_together(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "same"}\n' * 50)
    counts = []
    for split in SPLITS:
        documents = JsonLines(Files(str(tmp_path)), split=split)
        counts.append(sum(len(documents.documents(s)) for s in documents.shards()))
    assert sorted(counts) == [0, 0, 50]


def test_rows_of_a_saved_dataset_are_cut_into_shards_with_ids_of_their_content(tmp_path: Path):
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "d")
    documents = SavedDataset(Files(str(tmp_path / "d")), shard_rows=64)
    shards = documents.shards()
    assert [s.stop - s.start for s in shards] == [64, 64, 64, 8]
    assert len({s.content_id for s in shards}) == 4
    assert [t for s in shards for t in documents.documents(s)] == TEXTS
    datasets.Dataset.from_dict({"text": TEXTS[::-1]}).save_to_disk(tmp_path / "d2")
    other = SavedDataset(Files(str(tmp_path / "d2")), shard_rows=64)
    with pytest.raises(ShardChangedError):
        other.documents(replace(shards[0], uri=str(tmp_path / "d2")))


def test_what_is_not_one_data_set_with_that_column_is_refused(tmp_path: Path):
    with pytest.raises(CorpusError, match="a data set written by save_to_disk"):
        SavedDataset(Files(str(tmp_path / "none"))).shards()
    data = datasets.Dataset.from_dict({"body": TEXTS, "n": range(200)})
    data.save_to_disk(tmp_path / "one")
    for field in ("text", "n"):
        with pytest.raises(CorpusError, match=f"no text column '{field}' among body, n"):
            SavedDataset(Files(str(tmp_path / "one")), field=field).shards()
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "several")
    with pytest.raises(CorpusError, match="set root to one of them"):
        SavedDataset(Files(str(tmp_path / "several"))).shards()


# Labels, selections and deletions


def lines(path: Path, records: list, labels: Labels = NONE, **options) -> JsonLines:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return JsonLines(Files(str(path)), labels=labels, **options)


def saved(path: Path, columns: dict, labels: Labels = NONE, **options) -> SavedDataset:
    datasets.Dataset.from_dict(columns).save_to_disk(path)
    return SavedDataset(Files(str(path)), labels=labels, **options)


RECORDS = [
    {
        "text": f"Satz {i} über 三",
        "region": ["EU", "US", "亚洲"][i % 3],
        "n": i,
        "ok": i % 2 == 0,
        "at": f"2026-0{1 + i % 2}",
    }
    for i in range(30)
]


@pytest.fixture(params=["jsonl", "dataset"])
def corpus(request, tmp_path):
    """A maker of sources of equal documents, with these labels, cut to parts of a few documents."""

    def make(labels=NONE, name="d", records=RECORDS):
        if request.param == "jsonl":
            return lines(tmp_path / f"{name}.jsonl", records, labels, shard_bytes=1000)
        return saved(tmp_path / name, {k: [r[k] for r in records] for k in records[0]}, labels, shard_rows=12)

    return make


def test_documents_of_parts_are_all_documents_once(corpus):
    labels = Labels(columns=("region", "ok"), time="at", period="month")
    source, plain = corpus(labels), corpus()
    shards = source.shards()
    assert len({s.content_id for s in shards}) == len(shards) > len(plain.shards()) > 1
    assert [s.content_id for s in corpus(labels).shards()] == [s.content_id for s in shards]
    assert {s.within for s in shards} == {s.content_id for s in plain.shards()}
    there = {r["text"]: r for r in RECORDS}
    texts = []
    for shard in shards:
        named, documents = dict(shard.labels), plain.documents(shard)
        assert documents
        texts += documents
        for text in documents:
            record = there[text]
            assert (record["region"], str(record["ok"]).lower(), record["at"]) == tuple(
                named[key] for key in ("region", "ok", "time")
            )
    assert sorted(texts) == sorted(there)
    for whole in plain.shards():
        planned = sum(s.planned_rows for s in shards if s.within == whole.content_id)
        assert abs(planned - whole.planned_rows) <= len(RECORDS)


def test_document_labels_by_source_and_uniform_parts_stay_whole(corpus):
    records = [r | {"source": "web"} for r in RECORDS]
    shards = corpus(Labels(columns=("source",)), "s", records).shards()
    assert {(s.source, s.labels, s.select, s.within) for s in shards} == {("web", (), (), "")}
    assert [s.content_id for s in shards] == [s.content_id for s in corpus(Labels(), "s", records).shards()]


def test_documents_that_are_left_out(corpus):
    source = corpus(REGION)
    for shard in source.shards():
        whole = replace(shard, select=(), within="", content_id=shard.bytes_id)
        texts = source.documents(whole)
        mine = source.positions(shard, "region", frozenset([dict(shard.select)["region"]]))
        assert [texts[i] for i in mine] == source.documents(shard)
        short = replace(shard, without=mine[:2])
        assert source.documents(short) == [texts[i] for i in mine[2:]]
        assert source.positions(short, "region", frozenset(["EU", "US", "亚洲"])) == mine[2:]
        assert source.positions(short, "n", frozenset(str(r["n"]) for r in RECORDS)) == mine[2:]
        assert source.positions(whole, "ok", frozenset(["true"])) == tuple(
            i for i, text in enumerate(texts) if int(text.split()[1]) % 2 == 0
        )
        assert source.positions(whole, "ok", frozenset(["\ud800"])) == ()


def test_positions_count_the_documents_of_every_split(tmp_path):
    source = lines(tmp_path / "a.jsonl", RECORDS)
    (shard,) = source.shards()
    train = replace(source, split="train")
    texts = train.documents(shard)
    assert 0 < len(texts) < 30
    assert train.positions(shard, "n", frozenset(["0", "29"])) == (0, 29)
    out = tuple(i for i, r in enumerate(RECORDS) if r["text"] == texts[0])
    assert train.documents(replace(shard, without=out)) == texts[1:]


def test_line_that_is_left_out_cannot_raise(tmp_path):
    """Blank lines have no position; a line that is no JSON, no UTF-8 or no document has, and can be left out."""
    odd = b'\n \t\r\nno json\n{"text": "\xff"}\n\xc2\xa0\n{"text": 5, "k": 2}\n'
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a", "k": 1}\n' + odd + b'{"text": "b", "k": 1}')
    source = JsonLines(Files(str(tmp_path)), labels=Labels(columns=("k",), fixed=(("z", "1"),)))
    (shard,) = source.shards()  # it cannot be read, so it stays whole, to be refused
    assert shard.labels == (("z", "1"),)
    assert source.documents(replace(shard, without=(1, 2, 3))) == ["a", "b"]
    assert source.documents(replace(shard, without=(1, 2), select=(("k", "1"),), within=shard.content_id)) == ["a", "b"]
    assert source.positions(replace(shard, without=(1, 2)), "k", frozenset(["1"])) == (0, 4)
    for without, complaint in (((2, 3), "line 4 of the shard: not JSON"), ((1, 3), "0xff at offset 45 is not utf-8")):
        with pytest.raises(ShardError, match=complaint):
            source.documents(replace(shard, without=without))
    with pytest.raises(ShardError, match=r"line 7 of the shard: 5 under 'text'; expected a string"):
        source.documents(replace(shard, without=(1, 2)))


@pytest.mark.parametrize("value", [None, ["EU"], {"a": 1}, "\ud800", ...])
def test_json_line_without_a_label_is_refused(tmp_path, value):
    records = [{"text": "a", "region": "EU"}, {"text": "b"} if value is ... else {"text": "b", "region": value}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(CorpusError, match=r"a\.jsonl, row 1: no value that can be a label in column 'region'"):
        JsonLines(Files(str(tmp_path)), labels=REGION).shards()


def test_part_of_blank_lines_is_no_shard_where_labels_come_from_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    assert len(JsonLines(Files(str(tmp_path))).shards()) == 1
    assert JsonLines(Files(str(tmp_path)), labels=REGION).shards() == []


def test_saved_dataset_whose_values_moved_is_refused(tmp_path):
    """The texts are the same, but other rows would be selected; and no memory map travels to workers."""
    texts, regions = ["a", "b", "c"], ["EU", "EU", "US"]
    source = saved(tmp_path / "1", {"text": texts, "region": regions}, REGION)
    moved = saved(tmp_path / "2", {"text": texts, "region": ["EU", "US", "US"]}, REGION)
    bare = saved(tmp_path / "3", {"text": texts})
    eu, us = source.shards()
    assert {s.within for s in (eu, us)} == {s.within for s in moved.shards()} == {bare.shards()[0].content_id}
    assert {s.content_id for s in (eu, us)}.isdisjoint(s.content_id for s in moved.shards())
    for read in (moved.documents, lambda s: moved.positions(s, "region", frozenset(["EU"]))):
        with pytest.raises(ShardChangedError):
            read(replace(eu, uri=str(tmp_path / "2")))
    with pytest.raises(ShardError, match="no column 'region' among text"):
        bare.documents(replace(us, uri=str(tmp_path / "3")))
    with pytest.raises(CorpusError, match="no column 'region' among text"):
        replace(bare, labels=REGION).shards()
    assert "_opened" in vars(source)
    packed = pickle.dumps(source)
    assert len(packed) < 2000
    assert pickle.loads(packed).documents(us) == ["c"]  # bytes of this very process, as Dask sends them


def test_saved_dataset_that_is_gone_has_changed(tmp_path):
    """It was there when it was listed, so it is a shard that changed, and not a corpus that never was."""
    (shard,) = saved(tmp_path / "1", {"text": ["a", "b"]}).shards()
    shutil.rmtree(tmp_path / "1")
    source = SavedDataset(Files(str(tmp_path / "1")))
    for read in (source.documents, lambda s: source.positions(s, "text", frozenset("a"))):
        with pytest.raises(ShardChangedError, match=r"1#0-2: .*expected the data set that was found"):
            read(shard)


def test_positions_of_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    source = TextFiles(Files(str(tmp_path)))
    (shard,) = source.shards()
    for column, value in (("doc_id", "a.txt"), ("path", "a.txt"), ("path", shard.uri)):
        assert source.positions(shard, column, frozenset([value, "b"])) == (0,)
        assert source.positions(replace(shard, without=(0,)), column, frozenset([value])) == ()
    assert source.positions(shard, "path", frozenset(["b"])) == ()
    assert source.documents(replace(shard, without=(0,))) == []
    with pytest.raises(ShardError, match="no column 'user' in a text file; expected 'doc_id' or 'path'"):
        source.positions(shard, "user", frozenset(["a"]))
    with pytest.raises(ShardError, match="a selection by region from a text file"):
        source.documents(replace(shard, select=(("region", "EU"),), within=shard.content_id))


def test_changed_documents_have_no_positions(corpus, tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    for source in (corpus(REGION), TextFiles(Files(str(tmp_path / "a.txt")))):
        for shard in source.shards():
            changed = replace(shard, **{"within" if shard.within else "content_id": "0" * 64})
            for read in (source.documents, lambda s, source=source: source.positions(s, "none", frozenset(["EU"]))):
                with pytest.raises(ShardChangedError, match="changed while the corpus was read"):
                    read(changed)
