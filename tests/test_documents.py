"""Documents that share a file are split by their own text, and saved data sets read like any other corpus."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from streamfit.config import TextSection
from streamfit.corpus import Files, JsonLines
from streamfit.corpus.saved import SavedDataset
from streamfit.errors import CorpusError, ShardChangedError

TEXTS = [f"document {i}\nsays {i * i}" for i in range(200)]
SPLITS = ("train", "validation", "test")


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
        other.documents(shards[0])


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
