"""The jobs of a store's keeper: open, add, and verify against a corpus."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpora import (  # noqa: F401
    KINDS,
    X,
    columns,
    counted_anew,
    name_of,
    same,
    same_as_of,
    tables,
    unsynced,
    write_groups,
    write_tables,
    write_text,
)

from streamfit.corpus import Labels, ParquetTable
from streamfit.errors import ConfigError, ShardChangedError
from streamfit.forgetting import forget
from streamfit.store import Store
from streamfit.stores import Corpus, add, labels_of, open_any, verify_store

TABLE = KINDS["float64"]


@pytest.fixture
def there():
    """The tables, and the store that counted them in small groups."""
    return counted_anew("float64", group_rows=1)


# Adding


def test_only_what_is_new_is_read(there, tmp_path, serial, quiet, monkeypatch):
    """Counted content under another path is reported, and a second addition reads nothing."""
    folder, store = there
    read = []
    original = ParquetTable.read
    monkeypatch.setattr(ParquetTable, "read", lambda self, shard: [read.append(shard.key), *original(self, shard)][1:])
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(folder / "part-2.parquet", new / "copy.parquet")
    write_groups(new / "more.parquet", [pa.table(columns()).slice(7, 30), pa.table(columns()).slice(90, 50)])
    shutil.copy(new / "more.parquet", new / "more-again.parquet")
    summary = add(store, [str(new)], serial, None, quiet)
    assert sorted(read) == ["more-again.parquet#0", "more-again.parquet#1"]
    assert (summary.n_shards, summary.n_rows, [s.key for s in summary.already]) == (2, 80, ["copy.parquet#0"])
    assert [again.key for again, _ in summary.repeats] == ["more.parquet#0", "more.parquet#1"]
    again = add(store, [str(new), str(folder)], serial, None, quiet)
    assert (again.n_shards, len(again.already)) == (0, 7)
    assert len(read) == 2
    shutil.move(new, folder / "new")
    assert same_as_of(store, folder)


def test_labels_by_hand_and_by_folder(tmp_path, serial, quiet):
    """A source is named after its folder, also where a pattern follows, unless it is named by hand."""
    store = Store.create(tmp_path / "store", TABLE.header())
    for i, name in enumerate(("web", "code", "books", "mail")):
        write_groups(tmp_path / name / "part.parquet", [pa.table(columns()).slice(50 * i, 40)])
    add(store, [str(tmp_path / "web"), str(tmp_path / "code" / "*.parquet")], serial, None, quiet)
    add(store, [str(tmp_path / "books" / "part.parquet")], serial, None, quiet)
    corpus = Corpus().labelled(labels_of(["source=letters", "time=2026-11-23", "lang=de"]))
    add(store, [str(tmp_path / "mail")], serial, None, quiet, corpus=corpus)
    by = {Path(shard.uri).parent.name: (shard.source, shard.labels) for shard in store.counted().values()}
    assert by == {
        "web": ("web", ()),
        "code": ("code", ()),
        "books": ("part", ()),
        "mail": ("letters", (("lang", "de"), ("time", "2026-11-23"))),
    }


@pytest.mark.parametrize("texts", [["web"], ["=x"], ["a=1", "a=2"], ["time=yesterday"], ["source="], ["a="]])
def test_labels_that_cannot_be_meant_are_refused(texts):
    with pytest.raises(ConfigError):
        Corpus().labelled(labels_of(texts))


def test_labels_by_hand_go_before_those_of_a_run():
    """A group of its pattern, a column, its dates or a fixed label; what is not given is as it was."""
    run = Labels(r"(?P<source>\w+)-(?P<lang>\w+)", ("region", "kind"), "stamp", "month", (("site", "a"),))
    given = Corpus(labels=run).labelled(labels_of(["source=mail", "region=EU", "time=2026-04", "site=b"])).labels
    assert (given.columns, given.time) == (("kind",), "")
    assert given.of_file("web-de.parquet") == {
        "source": "mail", "lang": "de", "region": "EU", "time": "2026-04", "site": "b"
    }  # fmt: skip
    alone = Corpus(labels=run).labelled({"source": "mail", "lang": "fr"}).labels
    assert alone.of_file("no match") == {"source": "mail", "lang": "fr", "site": "a"}
    odd = Labels(r"(?P<source>\w)(?P<lang>[(]?P<lang>|(?P=source))").without(["source"])
    assert odd.of_file("aa") == {"lang": "a"}, "a pattern stays what it is, whatever it looks like"


def test_text_is_added_as_it_was_split(tmp_path, serial, quiet):
    """Files that are held out stay so, and those that were counted are not read again."""
    kind = KINDS["text"]
    kind.write(tmp_path / "corpus", (1, 2))
    store = kind.counted(tmp_path / "store", tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus")
    write_text(tmp_path / "corpus")
    summary = add(store, [str(tmp_path / "corpus")], serial, None, quiet)
    assert (summary.n_shards, len(summary.already)) == (2, len(store.counted()) - 2)
    assert same(store, kind.counted(tmp_path / "reference", tmp_path / "corpus"))


def test_changed_files_are_replaced_by_leave_alone(there, serial, quiet):
    folder, store = there
    write_tables(folder, (3,))
    head = store.head()
    with pytest.raises(ShardChangedError, match="--replace"):
        add(store, [str(folder)], serial, None, quiet)
    assert store.head() == head
    summary = add(store, [str(folder)], serial, None, quiet, replace_changed=True)
    assert store.head().sequence == head.sequence + 1
    assert summary.replaced.record == store.head()
    assert same_as_of(store, folder)
    assert store.forgotten() == {}


# Verifying against a corpus


def test_a_whole_corpus_proves_a_store(there, tmp_path, serial):
    """Every shard is read again where it lies now, also after rows left, and under another root."""
    folder, store = there
    forget(store, serial, None, where=[f"doc_id={name_of(2)}"])
    shutil.move(folder, tmp_path / "moved")
    found = verify_store(store, serial, None, against=str(tmp_path / "moved"), sample=1.0)
    assert found.faults == []
    assert (found.checked["shards read again"], found.checked["rows read again"]) == (5, store.head().n_rows)
    few = verify_store(store, serial, None, against=str(tmp_path / "moved"), sample=0.2, seed=1)
    assert few.faults == []
    assert 1 <= few.checked["shards read again"] < 5


@pytest.mark.parametrize("name", ["classes", "text", "jsonl", "dataset"])
def test_any_kind_of_corpus_can_be_compared(tmp_path, serial, name):
    """A data set is compared alone: what another one held is not in it."""
    kind = KINDS[name]
    kind.write(tmp_path / "corpus", ())
    store = kind.counted(tmp_path / "store", tmp_path / "corpus")
    root = tmp_path / "corpus" / ("set-0" if name == "dataset" else "")
    if name == "dataset":
        faults = verify_store(store, serial, None, against=str(root), sample=1.0).faults
        assert [fault.split(" (")[0] for fault in faults] == [
            "1 counted shards are not in the corpus, such as set-1#0-4"
        ]
        forget(store, serial, None, shards=["set-1#0-4"])
    forget(store, serial, None, where=[f"doc_id={name_of(2)}"])
    found = verify_store(store, serial, None, against=str(root), sample=1.0)
    assert found.faults == []
    assert found.checked["rows read again"] == store.head().n_rows


@pytest.mark.parametrize("fault", ["a row changed", "a file is gone", "other sums", "other counts"])
def test_a_corpus_that_does_not_give_the_sums_is_a_fault(tmp_path, serial, fault):
    """Also where every checksum is right, because somebody wrote other numbers."""
    kind = KINDS["text" if fault == "other counts" else "float32"]
    kind.write(tmp_path / "corpus", ())
    store = kind.counted(tmp_path / "store", tmp_path / "corpus")
    if fault == "a row changed":
        changed = [
            t.set_column(0, "x0", pa.array(np.append(t["x0"][1:], 0.5))) for t in dict(tables())["part-2.parquet"]
        ]
        write_groups(tmp_path / "corpus" / "part-2.parquet", changed)
    elif fault == "a file is gone":
        (tmp_path / "corpus" / "part-2.parquet").unlink()
    else:
        forge(store, counts=fault == "other counts")
    assert not verify_store(store, serial, None).faults, "the store's own bytes tell nothing"
    found = verify_store(store, serial, None, against=str(tmp_path / "corpus"), sample=1.0)
    if fault.startswith("other"):
        assert found.faults == [
            f"segment {store.head().segments[0].id} is not what its {store.head().segments[0].n_shards} shards sum to"
        ]
    else:
        assert len(found.faults) == 1
        assert "not in the corpus, such as part-2.parquet#0" in found.faults[0]


def forge(store: Store, *, counts: bool) -> None:
    """Replace the first live segment by one with a valid checksum and other numbers."""
    segment = store.head().segments[0]
    moments, there = store.read_all(segment)
    if counts:
        keys, numbers = there["ngram"]
        there = {"ngram": (keys, numbers[::-1])}
    else:
        moments = replace(moments + moments, n_rows=segment.n_rows)
    shards = store.ledger(segment)
    other = store.write_segment(moments, shards, [s.planned_rows for s in shards], there)
    folder = store.place.local / "segments"
    shutil.rmtree(folder / segment.id)
    shutil.move(folder / other.id, folder / segment.id)


@pytest.mark.parametrize("sample", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(there, serial, sample):
    with pytest.raises(ConfigError, match=r"expected a share in \(0, 1\]"):
        verify_store(there[1], serial, None, against=str(there[0]), sample=sample)


def test_a_share_of_no_corpus_is_refused(there, serial):
    """It would not be drawn from anything."""
    with pytest.raises(ConfigError, match=r"sample 0\.5 of no corpus; .*--against"):
        verify_store(there[1], serial, None, sample=0.5)


# Opening


def test_a_store_is_opened_by_its_run_wherever_that_lies(there, tmp_path):
    """By its own folder, by its run's, and a copy of a run is a run of its own."""
    _, store = there
    run = tmp_path / "run"
    run.mkdir()
    shutil.move(store.place.local, run / "store")
    columns_ = json.dumps([*X])
    (run / "problem.json").write_text(
        f'{{"kind": "ridge", "run": "{run}", "corpus": {{"root": "c", "features": {columns_}, "target": ["y"]}}}}'
    )
    for where in (run, run / "store", str(run)):
        assert open_any(where).place.local == run / "store"
    shutil.copytree(run, tmp_path / "copy")
    assert open_any(tmp_path / "copy").place.local == tmp_path / "copy" / "store"
    problem = json.loads((run / "problem.json").read_text())
    (run / "problem.json").write_text(json.dumps(problem | {"store": {"at": str(tmp_path / "copy" / "store")}}))
    assert open_any(run).place.local == tmp_path / "copy" / "store"
    assert open_any(run / "store", at=2).head().sequence == 2
