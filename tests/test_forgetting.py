"""Forgetting as a keeper asks for it: by names and by values, from a moved corpus; and what certificates say of it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from corpora import (  # noqa: F401
    KINDS,
    LONE,
    X,
    columns,
    counted_anew,
    key_to_id,
    name_of,
    never_saw,
    same,
    same_as_of,
    tables,
    unsynced,
    write_groups,
    write_tables,
)

from streamfit.corpus import Files, Labels, ParquetTable
from streamfit.engine import accumulate
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardError
from streamfit.forgetting import forget
from streamfit.removals import certificates
from streamfit.store import Store, collect, digest_of, purge
from streamfit.stores import add

TABLE = KINDS["float64"]


@pytest.fixture
def there():
    """The tables, and the store that counted them in small groups."""
    return counted_anew("float64", group_rows=1)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_forgetting_by_a_column_is_never_having_seen(serial, name, fast):
    """The job finds the rows by itself, whatever the corpus; for text files the document is its path."""
    _, store = counted_anew(name)
    done = forget(store, serial, None, where=[f"doc_id={name_of(d)}" for d in (2, 4, LONE)], fast=fast, why="asked")
    assert done.record == store.head()
    assert store.head().removed[-1].why == "asked"
    assert same(store, never_saw(name, frozenset({2, 4, LONE})))


@pytest.mark.parametrize("by", ["key", "file", "path", "content id"])
def test_forgetting_a_shard_by_any_of_its_names(there, serial, by):
    """A part of a file, or the file with all its parts."""
    folder, store = there
    name = {
        "key": "part-1.parquet#1",
        "file": "part-1.parquet",
        "path": str(folder / "part-1.parquet"),
        "content id": key_to_id(store)["part-1.parquet#1"][:8],
    }[by]
    done = forget(store, serial, None, shards=[name])
    gone = {"part-1.parquet#1"} | ({"part-1.parquet#0"} if by in ("file", "path") else set())
    assert {d.key for d in done.departures} == gone
    assert all(d.whole for d in done.departures)
    parts = dict(tables())
    write_groups(
        folder / "part-1.parquet",
        [g for i, g in enumerate(parts["part-1.parquet"]) if f"part-1.parquet#{i}" not in gone]
        or [parts["part-1.parquet"][0].slice(0, 0)],
    )
    assert same_as_of(store, folder)


def test_shards_and_rows_can_leave_together(there, serial):
    """A shard that is named leaves whole, though rows of it are asked for as well."""
    folder, store = there
    doc = columns()["doc_id"][0]
    done = forget(store, serial, None, shards=["part-2.parquet"], where=[f"doc_id={doc}"])
    whole = {d.key for d in done.departures if d.whole}
    assert whole == {"part-2.parquet#0"}
    parts = dict(tables([int(doc[1:-4])]))
    write_tables(folder, [int(doc[1:-4])])
    (folder / "part-2.parquet").unlink()
    assert len(parts) == 3
    assert same_as_of(store, folder)


def test_a_shard_all_of_whose_rows_leave_is_forgotten_whole(there, serial):
    """So that it is kept out when its file is added again."""
    _, store = there
    done = forget(store, serial, None, where=[f"doc_id={name_of(LONE)}"], fast=True)
    assert [d.key for d in done.departures if d.whole] == ["part-1.parquet#1"]
    assert [*store.forgotten()] == [done.departures[[d.whole for d in done.departures].index(True)].content_id]


@pytest.mark.parametrize("fast", [False, True])
def test_values_come_from_a_file_and_columns_must_all_match(there, tmp_path, serial, fast):
    """One value a line, and any of a column's is enough; numbers and strings are compared as text."""
    folder, store = there
    (tmp_path / "values").write_text(f"{name_of(1)}\r\n{name_of(3)}\n\n", newline="")
    forget(store, serial, None, where=[f"doc_id=@{tmp_path / 'values'}", "k=2", f"doc_id={name_of(5)}"], fast=fast)
    data = columns()
    gone = np.isin(data["doc_id"], [name_of(1), name_of(3), name_of(5)]) & (data["k"] == 2)
    assert 0 < gone.sum() < np.isin(data["doc_id"], [name_of(1), name_of(3), name_of(5)]).sum()
    assert store.head().n_rows == int((~gone).sum())
    kept = pa.array(~gone)
    lo = 0
    for name, parts in tables():
        sizes = [part.num_rows for part in parts]
        edges = np.cumsum([lo, *sizes]).tolist()
        write_groups(folder / name, [p.filter(kept.slice(e, n)) for p, e, n in zip(parts, edges, sizes, strict=False)])
        lo = edges[-1]
    assert same_as_of(store, folder)


@pytest.mark.parametrize(
    ("asked", "error", "complaint"),
    [
        ({}, ConfigError, "neither --shard nor --where"),
        ({"where": ["doc_id"]}, ConfigError, "--where 'doc_id'; expected column=value"),
        ({"where": ["=3"]}, ConfigError, "column=value"),
        ({"where": ["doc_id="]}, ConfigError, "column=value"),
        ({"where": ["doc_id=@nowhere.txt"]}, ConfigError, "nowhere.txt: No such file"),
        ({"where": ["doc_id=@latin.txt"]}, ConfigError, "latin.txt.*a value a line"),
        ({"where": ["doc_id=@empty.txt"]}, MismatchError, "no counted row"),
        ({"where": ["doc_id=d99.txt", "k=7"]}, MismatchError, "no counted row with doc_id=d99.txt and k=7"),
        ({"where": ["docid=3"]}, ShardError, "no column 'docid' among x0"),
        ({"shards": ["part-9.parquet"]}, MismatchError, "no counted shard 'part-9.parquet'"),
        ({"shards": [""]}, MismatchError, "no counted shard ''"),
        ({"shards": ["part"]}, MismatchError, "no counted shard 'part'"),
        ({"shards": ["part-1.parquet#1", "0123456789abcdef"]}, MismatchError, "no counted shard '0123456789abcdef'"),
    ],
)
def test_a_removal_that_cannot_be_meant_changes_nothing(there, tmp_path, serial, monkeypatch, asked, error, complaint):
    """Each mistake is one error of its own."""
    _, store = there
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n")
    head = store.head()
    with pytest.raises(error, match=complaint):
        forget(store, serial, None, **asked)
    assert store.head() == head


@pytest.mark.parametrize("relative", [False, True])
def test_a_name_of_several_files_is_refused(tmp_path, serial, monkeypatch, relative):
    """The same relative path below two roots: the full path tells them apart, or one from where the command is run."""
    for i, root in enumerate(("one", "two")):
        write_groups(tmp_path / root / "part.parquet", [pa.table(columns()).slice(50 * i, 40)])
    store = Store.create(tmp_path / "store", TABLE.header())
    for root in ("one", "two"):
        accumulate(store, *TABLE.sources(tmp_path / root))
    with pytest.raises(MismatchError, match=r"shards of 2 files: .*one/part\.parquet, .*two/part\.parquet"):
        forget(store, serial, None, shards=["part.parquet"])
    monkeypatch.chdir(tmp_path / "one")
    path = "../two/part.parquet" if relative else str(tmp_path / "two" / "part.parquet")
    forget(store, serial, None, shards=[path])
    assert same_as_of(store, tmp_path / "one")


@pytest.mark.parametrize("fast", [False, True])
def test_forgetting_from_shards_that_are_divided_by_a_column(tmp_path, serial, fast):
    """Rows leave the part that they are in; a part can be named, and so can the file with all its parts."""
    TABLE.write(tmp_path / "corpus", ())
    source = ParquetTable(Files(str(tmp_path / "corpus")), X, ("y",), labels=Labels(columns=("region",)))
    store = Store.create(tmp_path / "store", TABLE.header())
    accumulate(store, source)
    assert {shard.labels for shard in store.counted().values()} == {(("region", "EU"),), (("region", "US"),)}
    forget(store, serial, None, where=[f"doc_id={name_of(0)}", f"doc_id={name_of(1)}"], fast=fast)
    forget(store, serial, None, shards=["part-0.parquet#0[region=EU]", "part-1.parquet"], fast=fast)
    fresh = Store.create(tmp_path / "fresh", TABLE.header())
    write_tables(tmp_path / "rest", (0, 1))
    (tmp_path / "rest" / "part-1.parquet").unlink()
    accumulate(fresh, ParquetTable(Files(str(tmp_path / "rest")), X, ("y",), labels=Labels(columns=("region",))))
    forget(fresh, serial, None, shards=["part-0.parquet#0[region=EU]"])
    assert same(store, fresh)
    forget(store, serial, None, where=["region=EU"], fast=fast)
    assert {segment.labels for segment in store.head().segments} == {(("region", "US"),)}
    forget(store, serial, None, shards=["part-0.parquet#0"], fast=fast)
    assert {shard.key.split("[")[0] for shard in store.counted().values()} == {"part-0.parquet#1", "part-2.parquet#0"}


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["float64", "text", "jsonl", "dataset"])
def test_a_moved_corpus_is_found_by_its_bytes(tmp_path, serial, name, fast):
    """`corpus` says where it lies; without it the error says that it should be given, and nothing changes."""
    kind = KINDS[name]
    kind.write(tmp_path / "corpus", ())
    store = kind.counted(tmp_path / "store", tmp_path / "corpus")
    head = store.head()
    root = "corpus/set-0" if name == "dataset" else "corpus"
    if name == "dataset":
        shutil.rmtree(tmp_path / "corpus" / "set-1")
        forget(store, serial, None, shards=["set-1#0-4"], fast=True)
        head = store.head()
    shutil.move(tmp_path / root, tmp_path / "moved")
    with pytest.raises(CorpusError):
        forget(store, serial, None, where=[f"doc_id={name_of(2)}"], fast=fast)
    assert store.head() == head
    forget(store, serial, None, where=[f"doc_id={name_of(2)}"], fast=fast, corpus=str(tmp_path / "moved"))
    kind.write(tmp_path / "reference" / "corpus", (2,))
    if name == "dataset":
        shutil.rmtree(tmp_path / "reference" / "corpus" / "set-1")
    assert same(store, kind.counted(tmp_path / "reference" / "store", tmp_path / "reference" / "corpus"))


def test_a_file_that_changed_since_is_not_taken_for_what_was_counted(there, serial):
    """Rows that are not those of the ledger would be subtracted from sums that never held them."""
    folder, store = there
    write_tables(folder, (3,))
    head = store.head()
    for fast in (False, True):
        with pytest.raises(ShardError, match=r"content changed.*restore the file, say with --corpus"):
            forget(store, serial, None, where=[f"doc_id={name_of(2)}"], fast=fast)
    assert store.head() == head
    forget(store, serial, None, shards=["part-2.parquet"], fast=True)
    assert store.head().n_rows == 4575


# Certificates


def test_a_certificate_says_what_left_and_what_is_left_of_it(there, serial):
    """Old segments are on disk until the removal is purged; the digest is that of a store that never saw the rows."""
    folder, store = there
    forget(store, serial, None, where=[f"doc_id={name_of(LONE)}"], why="a request")
    forget(store, serial, None, shards=["part-0.parquet#0"])
    first, second = certificates(store)
    assert (first.removal.sequence, second.removal.sequence) == (store.head().sequence - 1, store.head().sequence)
    assert certificates(store, first.removal.sequence) == [first]
    gone = int((columns()["doc_id"] == name_of(LONE)).sum())
    assert first.still_counted == second.still_counted == ()
    assert first.removal.n_rows == sum(shard["n_rows"] for shard in first.shards) == gone
    assert {*first.still_held} == {*first.removal.segments}
    text = "\n".join(first.lines())
    for part in (
        "reason: a request",
        f"{gone:,} rows of 5 shards",
        "part-1.parquet#1: 10 rows, whole",
        "are still on disk",
    ):
        assert part in text
    assert json.loads(json.dumps(first.to_json())) == first.to_json()
    assert purge(store).segments == 6
    first, second = certificates(store)
    assert first.still_held == second.still_held == ()
    assert "no segment with these rows is left on disk" in "\n".join(first.lines())
    write_tables(folder, (LONE,))
    parts = dict(tables((LONE,)))
    write_groups(folder / "part-0.parquet", parts["part-0.parquet"][1:])
    assert same_as_of(store, folder)
    assert first.digest == second.digest == digest_of(store.moments())


def test_a_certificate_names_the_pin_that_holds_rows_and_what_was_counted_again(there, serial, quiet):
    """A removal is not complete while a pin keeps the old segments, or once the shard is back."""
    folder, store = there
    store.pin("before")
    forget(store, serial, None, shards=["part-2.parquet"])
    purge(store)
    (certificate,) = certificates(store)
    assert (certificate.held_by, len(certificate.still_held)) == (("before",), 1)
    assert "still on disk: pinned by before" in "\n".join(certificate.lines())
    store.unpin("before")
    collect(store, keep=0)
    assert certificates(store)[0].still_held == ()
    add(store, [str(folder)], serial, None, quiet, recount_forgotten=True)
    (certificate,) = certificates(store)
    assert certificate.still_counted == (key_to_id(store)["part-2.parquet#0"],)
    assert "counted again since" in "\n".join(certificate.lines())


def test_a_changed_file_does_not_bring_back_what_was_taken_out_of_it(there, serial, quiet):
    """Positions mean nothing in new content: it is refused, or counted whole, as the certificate then says."""
    folder, store = there
    forget(store, serial, None, where=[f"doc_id={name_of(2)}"])
    (before,) = certificates(store)
    assert "never saw the rows" in "\n".join(before.lines())
    write_tables(folder, (3,))
    head = store.head()
    with pytest.raises(MismatchError, match=r"rows had been taken out of what it was.*--again"):
        add(store, [str(folder)], serial, None, quiet, replace_changed=True)
    assert store.head() == head
    add(store, [str(folder)], serial, None, quiet, replace_changed=True, recount_forgotten=True)
    after = certificates(store)[0]
    assert after.renewed
    assert "their keeper must say" in "\n".join(after.lines())
    assert "never saw the rows" not in "\n".join(after.lines())


def test_there_is_no_certificate_of_what_did_not_happen(there, serial):
    _, store = there
    with pytest.raises(MismatchError, match="no removal; expected a store that has forgotten something"):
        certificates(store)
    forget(store, serial, None, shards=["part-2.parquet"])
    with pytest.raises(MismatchError, match=f"no removal by commit 2; expected one of commits {store.head().sequence}"):
        certificates(store, 2)
