"""Files that change after they were counted: refused, or swapped in one commit; and what was forgotten stays away."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from corpora import KINDS, N_DOCS, columns, name_of, record_of, sums, texts, unsynced, write_groups  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfit.corpus import Files, Labels, ParquetTable
from streamfit.corpus.saved import SavedDataset
from streamfit.engine import accumulate, find_rows, rewrite
from streamfit.errors import CorpusError, MismatchError, ShardChangedError, ShardError
from streamfit.store import Store
from streamfit.text import token_source

TABLE = KINDS["weights"]


@cache
def group(number: int) -> pa.Table:
    """One of many row groups, each of another length."""
    return pa.table(columns()).slice(100 * number, 20 + number)


def put(kind: str, folder: Path, files: dict[str, tuple[int, ...]]) -> None:
    """Write files with these row groups, lines or words, over those that are there."""
    folder.mkdir(exist_ok=True)
    for name, parts in files.items():
        path = folder / f"{name}.{'parquet' if kind == 'weights' else kind}"
        if kind == "weights":
            write_groups(path, map(group, parts))
        elif kind == "jsonl":
            path.write_text("".join(json.dumps(record_of(doc)) + "\n" for doc in parts))
        else:
            path.write_text("\n".join(texts()[doc] for doc in parts))


def count(kind: str, store: Store, folder: Path, **options):
    (source,) = KINDS[kind].sources(folder)
    return accumulate(store, source, **options)


def fresh(kind: str, folder: Path) -> Store:
    """A store of the files that are there now."""
    where = folder.with_name("fresh")
    shutil.rmtree(where, ignore_errors=True)
    return KINDS[kind].counted(where, folder)


# The law

contents = st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple)
states = st.lists(st.fixed_dictionaries({"a": contents, "b": contents}), min_size=2, max_size=4)


@pytest.mark.parametrize("kind", ["weights", "jsonl", "text"])
@settings(max_examples=max(3, settings().max_examples // 8))
@given(states=states)
def test_after_a_swap_a_store_holds_the_present_files(tmp_path_factory, kind, states):
    """However contents wander between files and back; without leave it is refused where something would be lost."""
    folder = tmp_path_factory.mktemp("law") / "corpus"
    store = Store.create(folder.with_name("store"), KINDS[kind].header())
    for state in states:
        put(kind, folder, state)
        (source,) = KINDS[kind].sources(folder)
        present, head = {shard.content_id for shard in source.shards()}, store.head()
        if store.counted().keys() <= present:
            count(kind, store, folder)
        else:
            with pytest.raises(ShardChangedError, match="since it was counted"):
                count(kind, store, folder)
            assert store.head() == head
            summary = count(kind, store, folder, replace_changed=True)
            swap = store.record(head.sequence + 1)
            assert swap.action.startswith("replace")
            gone = {d.content_id for d in summary.replaced.departures}
            assert gone == {d.content_id for d in store.departures(swap.removed[-1])}
            assert not gone & present
        assert store.counted().keys() == present
        head = store.head()
        assert count(kind, store, folder).n_shards == 0, "nothing is left to be done"
        assert store.head() == head
    assert sums(store) == sums(fresh(kind, folder))


# By example


@pytest.fixture
def there(tmp_path):
    """A folder of three files, and the store that counted them."""
    put("weights", tmp_path / "corpus", {"a": (0, 1), "b": (2,), "c": (3,)})
    return tmp_path / "corpus", TABLE.counted(tmp_path / "store", tmp_path / "corpus")


@pytest.mark.parametrize(
    ("now", "gone", "come"),
    [
        ((5, 1), {0}, {5}),
        ((0, 5, 6), {1}, {5, 6}),
        ((0,), {1}, set()),
        ((5,), {0, 1}, {5}),
        ((2,), {0, 1}, set()),
    ],
    ids=["edited", "grown", "shrunk", "replaced", "counted elsewhere"],
)
def test_a_swap_is_one_commit(there, now, gone, come):
    """What is still in the file is not read, what came is counted, what left is on record with what took its place."""
    folder, store = there
    rows = {shard.planned_rows - 20: content for content, shard in store.counted().items()}
    head = store.head()
    put("weights", folder, {"a": now})
    with pytest.raises(ShardChangedError, match="since it was counted") as error:
        count("weights", store, folder)
    assert any(rows[n][:12] in str(error.value) for n in gone), "the id that was counted"
    assert store.head() == head
    summary = count("weights", store, folder, replace_changed=True)
    assert store.head().sequence == head.sequence + 1
    assert {d.content_id for d in summary.replaced.departures} == {rows[n] for n in gone}
    assert (summary.n_shards, summary.n_rows) == (len(come), sum(20 + n for n in come))
    new = {content for content, s in store.counted().items() if s.planned_rows - 20 in come}
    assert all({*d.replaced_by.split()} == new for d in summary.replaced.departures)
    assert sums(store) == sums(fresh("weights", folder))
    put("weights", folder, {"a": (0, 1)})
    count("weights", store, folder, replace_changed=True)
    assert sums(store) == sums(fresh("weights", folder)), "what was replaced may come back"


def test_the_error_names_both_ids(there):
    folder, store = there
    put("weights", folder, {"b": (6,)})
    (source,) = TABLE.sources(folder)
    before = next(c for c, s in store.counted().items() if s.key == "b.parquet#0")
    now = next(s.content_id for s in source.shards() if s.key == "b.parquet#0")
    with pytest.raises(ShardChangedError, match=rf"b\.parquet#0 .* now {now[:12]}; .*{before[:12]} .*--replace"):
        accumulate(store, source)


def test_content_that_moved_to_another_file_is_no_change(there):
    """It is still there, and counted: nothing is lost when its old file gets another content."""
    folder, store = there
    (folder / "a.parquet").rename(folder / "z.parquet")
    put("weights", folder, {"a": (5,)})
    summary = count("weights", store, folder)
    assert (summary.n_shards, len(summary.already), summary.replaced) == (1, 4, None)
    assert sums(store) == sums(fresh("weights", folder))
    assert count("weights", store, folder).n_shards == 0


def test_a_swap_that_cannot_be_read_changes_nothing(there):
    """New content with a NaN, or half a file, is no reason to lose the old."""
    folder, store = there
    head = store.head()
    bad = group(5).set_column(0, "x0", pa.array([float("nan")] * 25))
    write_groups(folder / "a.parquet", [group(6), bad])
    with pytest.raises(ShardError, match=r"a.parquet#1, row 0: nan in column 'x0'") as error:
        count("weights", store, folder, replace_changed=True)
    assert "--fast" not in str(error.value), "it is the new content that is at fault, not the old"
    (folder / "a.parquet").write_bytes((folder / "a.parquet").read_bytes()[:-9])
    with pytest.raises(CorpusError, match=r"a.parquet"):
        count("weights", store, folder, replace_changed=True)
    assert store.head() == head


def test_rows_of_a_saved_data_set_that_changed_their_label_are_not_counted_twice(tmp_path):
    """The texts are the same and make the same id, but they are divided among other shards now."""
    docs = [record_of(doc) for doc in range(6)]
    docs[0]["region"] = "EU"
    datasets.Dataset.from_list(docs).save_to_disk(tmp_path / "set")
    documents = SavedDataset(Files(str(tmp_path / "set")), labels=Labels(columns=("region",)))
    kind = KINDS["dataset"]
    store = Store.create(tmp_path / "store", kind.header())
    n_rows = accumulate(store, token_source(kind.header(), documents)).n_rows
    docs[0]["region"] = "US"
    shutil.rmtree(tmp_path / "set")
    datasets.Dataset.from_list(docs).save_to_disk(tmp_path / "set")
    documents = SavedDataset(Files(str(tmp_path / "set")), labels=Labels(columns=("region",)))
    with pytest.raises(ShardChangedError, match="since it was counted"):
        accumulate(store, token_source(kind.header(), documents))
    accumulate(store, token_source(kind.header(), documents), replace_changed=True)
    assert store.head().n_rows == n_rows
    by = {shard.labels: shard.planned_rows for shard in store.counted().values()}
    again = Store.create(tmp_path / "again", kind.header())
    accumulate(again, token_source(kind.header(), documents))
    assert by == {shard.labels: shard.planned_rows for shard in again.counted().values()}
    assert sums(store) == sums(again)


def test_a_file_divided_by_other_columns_is_refused_and_not_asked_for_again_and_again(tmp_path):
    """Its rows are counted; under another division they would be so a second time, or the run would never end."""
    TABLE.write(tmp_path / "corpus", ())
    store = TABLE.counted(tmp_path / "store", tmp_path / "corpus")
    (source,) = TABLE.sources(tmp_path / "corpus")
    head = store.head()
    for again in (False, True):
        with pytest.raises(MismatchError, match=r"counted already.*region"):
            accumulate(store, replace(source, labels=Labels(columns=("region",))), replace_changed=again)
    assert store.head() == head


# What was forgotten


def test_what_was_forgotten_is_kept_out_until_it_is_asked_for(there):
    """Whole shards, under any name; once they are asked for, they are back with the same bits."""
    folder, store = there
    before = sums(store)
    ids = {shard.key: content for content, shard in store.counted().items()}
    (source,) = TABLE.sources(folder)
    rewrite(store, source, {ids["a.parquet#0"]: None, ids["c.parquet#0"]: None})
    head = store.head()
    (folder / "c.parquet").rename(folder / "renamed.parquet")
    summary = count("weights", store, folder)
    assert (store.head(), summary.n_rows) == (head, 0)
    assert [shard.key for shard in summary.kept_out] == ["a.parquet#0", "renamed.parquet#0"]
    again = count("weights", store, folder, recount=True)
    assert (again.n_shards, again.kept_out) == (2, ())
    assert sums(store) == before
    assert store.forgotten() == {}


def test_a_swap_brings_nothing_back_that_was_forgotten(there):
    """A file that has again the content that was forgotten adds nothing, and what it held since leaves."""
    folder, store = there
    ids = {shard.key: content for content, shard in store.counted().items()}
    (source,) = TABLE.sources(folder)
    rewrite(store, source, {ids["a.parquet#0"]: None, ids["a.parquet#1"]: None})
    put("weights", folder, {"a": (5,)})
    count("weights", store, folder)
    put("weights", folder, {"a": (0, 1)})
    summary = count("weights", store, folder, replace_changed=True)
    assert ([s.key for s in summary.kept_out], summary.n_rows) == (["a.parquet#0", "a.parquet#1"], 0)
    (folder / "a.parquet").unlink()
    assert sums(store) == sums(fresh("weights", folder))


def test_rows_that_were_forgotten_do_not_come_back_with_their_file(there):
    """A file that changes, all of which is counted, and changes back, is without the rows that were taken out of it."""
    folder, store = there
    (source,) = TABLE.sources(folder)
    doc = group(0)["doc_id"][0].as_py()
    rewrite(store, source, find_rows(store, source, "doc_id", [doc]))
    before = sums(store)
    put("weights", folder, {"a": (5,)})
    with pytest.raises(MismatchError, match="1 rows had been taken out"):
        count("weights", store, folder, replace_changed=True)
    count("weights", store, folder, replace_changed=True, recount=True)
    put("weights", folder, {"a": (0, 1)})
    count("weights", store, folder, replace_changed=True)
    assert sums(store) == before
    assert find_rows(store, source, "doc_id", [doc]) == {}


def test_a_narrowed_shard_stays_counted(there):
    """Its file is neither new nor changed, and adds nothing."""
    folder, store = there
    (source,) = TABLE.sources(folder)
    rewrite(store, source, find_rows(store, source, "doc_id", [name_of(n) for n in range(N_DOCS // 2)]))
    head = store.head()
    summary = count("weights", store, folder, replace_changed=True)
    assert (store.head(), len(summary.already), summary.kept_out) == (head, 4, ())


# Two at work


class Hooked(ParquetTable):
    """A table that does something once, before its n-th shard is read."""

    def read(self, shard):
        READ.append(shard.key)
        if HOOK and len(READ) == HOOK[0][0]:
            HOOK.pop()[1]()
        yield from super().read(shard)


READ: list[str] = []
HOOK: list[tuple] = []


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("other", ["all", "some", "forget"])
def test_another_run_meanwhile_counts_nothing_twice(tmp_path, n, other):
    """Two runs over one corpus: what one commits, the other leaves out, and neither fails."""
    folder = tmp_path / "corpus"
    put("weights", folder, {"a": (0, 1, 2), "b": (3, 4), "c": (5,)})
    store = Store.create(tmp_path / "store", TABLE.header())
    (source,) = TABLE.sources(folder)
    theirs = replace(source, files=Files(str(folder), include=("a*",) if other == "some" else ()))

    def run():
        mine = Store(store.place.local)
        accumulate(mine, theirs, group_rows=30)
        if other == "forget":
            rewrite(mine, theirs, {next(c for c, s in mine.counted().items() if s.key == "c.parquet#0"): None})

    READ.clear()
    HOOK[:] = [(n, run)]
    summary = accumulate(store, Hooked(source.files, source.features, source.target, source.weight), group_rows=30)
    assert HOOK == []
    counted = [shard for segment in store.head().segments for shard in store.ledger(segment)]
    assert len(counted) == len({shard.content_id for shard in counted}) == 6 - (other == "forget")
    if other == "forget":
        (folder / "c.parquet").unlink()
    assert sums(store) == sums(fresh("weights", folder))
    assert summary.n_shards < 6
