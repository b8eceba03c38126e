"""Taking rows and shards out of a store: afterwards it is, bit for bit, one that never saw them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import pytest
from corpora import (  # noqa: F401
    KINDS,
    LONE,
    N_DOCS,
    Kind,
    X,
    counted_anew,
    found,
    key_to_id,
    name_of,
    never_saw,
    same,
    sums,
    sums_of,
    unsynced,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamfit.corpus import Files, ParquetTable, Source
from streamfit.engine import Machine, WorkOptions, accumulate, connect, find_rows, rewrite
from streamfit.engine.work import sum_shards
from streamfit.errors import MismatchError, ShardChangedError, ShardError, StoreError
from streamfit.store import FullError, Store, compact, verify

TABLE = KINDS["float64"]


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes, for all tests of this module."""
    with connect(Machine(n_workers=2, threads_per_worker=1, memory_limit=2**31)) as client:
        yield client


@dataclass(frozen=True)
class Counted:
    """A kind of corpus that was counted: copies of its store can be made to forget."""

    kind: Kind
    folder: Path
    numbers: count

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def source(self) -> Source:
        return self.kind.sources(self.corpus)[0]

    def store(self, *, compacted: bool = False) -> Store:
        """A copy: many small segments, or one for each fold."""
        where = self.folder / f"copy-{next(self.numbers)}"
        shutil.copytree(self.folder / "store", where)
        store = Store(where)
        if compacted:
            compact(store)
            assert len(store.head().segments) == len({s.fold for s in store.head().segments})
        return store

    def never_saw(self, docs) -> Store:
        return never_saw(self.kind.name, frozenset(docs))

    def sums_without(self, docs) -> tuple:
        folder, store = self.folder / f"copy-{next(self.numbers)}", Store(self.folder / "store")
        self.kind.write(folder, docs)
        parts = [sum_shards(store, s, s.shards(), WorkOptions()) for s in self.kind.sources(folder) if found(folder)]
        total = sum((part.moments for part in parts), store.zeros())
        return sums_of(total, [part.tables for part in parts])


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Makes, or finds, the counted corpus of a kind."""
    made = {}

    def counted(name: str) -> Counted:
        if name not in made:
            kind, folder = KINDS[name], tmp_path_factory.mktemp(name)
            kind.write(folder / "corpus", ())
            kind.counted(folder / "store", folder / "corpus", group_rows=1)
            made[name] = Counted(kind, folder, count())
        return made[name]

    return counted


def forget(store: Store, source: Source, docs, **options):
    """Forget documents; None if nothing of them is counted."""
    leaving = find_rows(store, source, "doc_id", map(name_of, docs))
    return rewrite(store, source, leaving, **options) if leaving else None


# The law

some = st.sets(st.integers(0, N_DOCS - 1), max_size=5)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=max(2, settings().max_examples // 12))
@given(first=some, then=some, fast=st.tuples(st.booleans(), st.booleans()), compacted=st.booleans())
@example(first={2, LONE}, then={3, 5}, fast=(True, False), compacted=True)
@example(first={0, 3}, then={2, 3, LONE}, fast=(False, True), compacted=False)
def test_a_store_that_forgot_is_one_that_never_saw(counted, name, first, then, fast, compacted):
    """Any documents, of any kind of corpus, in two steps, read anew or subtracted, from small segments or large."""
    there = counted(name)
    store = there.store(compacted=compacted)
    forget(store, there.source, first, fast=fast[0])
    assert sums(store) == there.sums_without(first)
    forget(store, there.source, then, fast=fast[1])
    assert sums(store) == there.sums_without(first | then)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["classes", "text", "jsonl", "dataset"])
def test_a_store_that_forgot_everything_is_empty(counted, name, fast):
    """Its sums are those of no rows; every shard is still known, so that none comes back by itself."""
    there = counted(name)
    store = there.store(compacted=True)
    done = rewrite(store, there.source, dict.fromkeys(store.counted()), fast=fast)
    assert (done.record.segments, done.read_rows, len(done.departures)) == ((), 0, len(store.forgotten()))
    assert same(store, Store.create(store.place.local / "empty", store.header))
    for source in there.kind.sources(there.corpus):
        summary = accumulate(store, source)
        assert (summary.n_rows, len(summary.kept_out)) == (0, len(source.shards()))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", ["float32", "text"])
def test_workers_forget_with_the_same_bits(counted, cluster, name, fast):
    """On two processes, where several segments are counted anew at the same time, as in this one."""
    there = counted(name)
    store = there.store()
    docs = {0, 1, 2, 4, LONE}
    leaving = find_rows(store, there.source, "doc_id", map(name_of, docs), client=cluster)
    assert leaving == find_rows(store, there.source, "doc_id", map(name_of, docs))
    done = rewrite(store, there.source, leaving, fast=fast, client=cluster)
    assert len(done.segments) > 1
    assert same(store, there.never_saw(docs))


def test_workers_merge_while_they_count(tmp_path, counted, cluster):
    """The bound holds at every commit, on processes as in this one, and the sums are the same."""
    there = counted("jsonl")
    store = Store.create(tmp_path / "store", replace(there.kind.header(), n_folds=1), max_live=2)
    accumulate(store, there.source, client=cluster, group_rows=1)
    assert len(store.counted()) == 5
    assert all(len(record.segments) <= record.bound == 2 for record in store.records())
    assert sums(store) == sums(there.store())


# What is read, and what is written down


class Watched(ParquetTable):
    """A table that tells which shards are read, and may be disturbed before each."""

    def read(self, shard):
        READ.append(shard.key)
        for act in BEFORE.get(len(READ), ()):
            act()
        yield from super().read(shard)


READ: list[str] = []
BEFORE: dict[int, list] = {}


@pytest.fixture
def watched(counted):
    """The table, read by a source that is watched; `before(n, act)` acts before the n-th shard is read."""
    READ.clear()
    BEFORE.clear()
    there = counted("float64")
    yield there, Watched(Files(str(there.corpus)), X, ("y",))
    BEFORE.clear()


def test_a_fast_removal_reads_only_what_leaves(watched):
    """Whole shards are read once; shards that stay in part twice, as they were and as they shall be."""
    there, source = watched
    store = there.store(compacted=True)
    ids = key_to_id(store)
    done = rewrite(store, source, {ids["part-2.parquet#0"]: None, ids["part-0.parquet#0"]: (3, 5)}, fast=True)
    assert sorted(READ) == ["part-0.parquet#0", "part-0.parquet#0", "part-2.parquet#0"]
    assert done.read_rows == 30 + 40 + 38
    assert store.head().n_rows == 4605 - 30 - 2


def test_a_removal_touches_no_segment_but_those_of_its_shards(watched):
    """Others are neither read nor written again, and an unread shard may be gone from the disk."""
    there, source = watched
    store = there.store()
    before = {s.id: s for s in store.head().segments}
    assert len(before) == 5, "a segment a shard"
    ids = key_to_id(store)
    done = rewrite(store, source, {ids["part-1.parquet#0"]: (0,), ids["part-1.parquet#1"]: None})
    assert READ == ["part-1.parquet#0"]
    assert done.read_rows == 24
    assert len(before.keys() & {s.id for s in done.record.segments}) == 3


def test_what_left_is_on_record(watched):
    """Shards, positions, rows and reason, in the log and beside it; the rows themselves are nowhere."""
    there, source = watched
    store = there.store()
    ids = key_to_id(store)
    held = {store.holder(ids[key]).id for key in ("part-1.parquet#0", "part-1.parquet#1")}
    leaving = {ids["part-1.parquet#0"]: (7, 2), ids["part-1.parquet#1"]: None}
    done = rewrite(store, source, leaving, why="asked to")
    (removal,) = Store(store.place.local).head().removed
    assert (removal.kind, removal.sequence, removal.why) == ("forgotten", done.record.sequence, "asked to")
    assert (removal.n_shards, removal.n_rows, {*removal.segments}) == (2, 12, held)
    left = {d.key: (d.n_rows, d.whole, {*d.positions}) for d in store.departures(removal)}
    assert left == {"part-1.parquet#0": (2, False, {2, 7}), "part-1.parquet#1": (10, True, set())}
    assert store.counted()[ids["part-1.parquet#0"]].without == (2, 7)
    assert [*store.forgotten()] == [ids["part-1.parquet#1"]]


def test_rows_that_left_are_not_found_again(counted):
    """A second removal of the same rows finds nothing, and positions keep their meaning after a first."""
    there = counted("float64")
    store = there.store()
    everywhere = find_rows(store, there.source, "doc_id", iter([name_of(2), name_of(3)]))
    forget(store, there.source, {2})
    left = find_rows(store, there.source, "doc_id", iter([name_of(2), name_of(3)]))
    third = find_rows(there.store(), there.source, "doc_id", [name_of(3)])
    assert left == third
    assert everywhere != third
    assert find_rows(store, there.source, "doc_id", [name_of(2)]) == {}


def test_a_removal_of_no_positions_of_a_shard_leaves_it_whole(counted):
    """Nothing but None stands for all of its rows."""
    there = counted("float64")
    store = there.store()
    content = key_to_id(store)["part-1.parquet#1"]
    done = rewrite(store, there.source, {content: ()})
    assert [d.n_rows for d in done.departures] == [0]
    assert sums(store) == sums(there.store())


def test_a_full_store_forgets_without_exceeding_its_bound(tmp_path, counted):
    """Several segments of several folds, at a bound of four."""
    there = counted("float64")
    store = TABLE.counted(tmp_path / "store", there.corpus, group_rows=1, max_live=4)
    ids = key_to_id(store)
    rewrite(store, there.source, dict.fromkeys(ids.values(), (0,)))
    assert all(len(record.segments) <= record.bound for record in store.records())
    assert store.head().n_rows == 4600


def test_a_store_that_stays_full_is_told_so(counted, monkeypatch):
    """If others fill it whenever room was made, the removal gives up with their error, and nothing is changed."""
    there = counted("float64")
    store, tries = there.store(compacted=True), []
    head = store.head()

    def full(self, *_, **options):
        tries.append(options["drop"])
        raise FullError("9 live segments", "at most 8", "run `streamfit compact`")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", full)
        with pytest.raises(FullError, match="9 live segments; expected at most 8"):
            forget(store, there.source, {1})
    assert len(tries) > 1
    assert store.head() == head


# Faults


@pytest.fixture
def movable():
    """A table whose files may be touched, its source and its store."""
    folder, store = counted_anew("float64")
    (source,) = TABLE.sources(folder)
    return folder, source, store


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("fault", ["changed", "deleted"])
def test_a_shard_that_must_be_read_and_cannot_be_is_named(movable, fault, fast):
    """One error that says what to do, and the store is as it was."""
    folder, source, store = movable
    head, content = store.head(), key_to_id(store)["part-1.parquet#0"]
    if fault == "changed":
        shutil.copy(folder / "part-0.parquet", folder / "part-1.parquet")
    else:
        (folder / "part-1.parquet").unlink()
    complaint = f"{'content changed' if fault == 'changed' else '.*No such file'}.*--corpus.*nothing was changed"
    with pytest.raises(ShardChangedError, match=f"part-1.parquet#0: {complaint}"):
        rewrite(store, source, {content: (1,)}, fast=fast)
    with pytest.raises(ShardChangedError, match=rf"part-1.parquet#\d: {complaint}"):
        find_rows(store, source, "doc_id", ["d1.txt"])
    assert Store(store.place.local).head() == head
    assert rewrite(store, source, {key_to_id(store)["part-2.parquet#0"]: None}, fast=True).departures[0].n_rows == 30


@pytest.mark.parametrize("fast", [False, True])
def test_a_moved_corpus_is_read_where_it_lies_now(movable, fast):
    """By its bytes: under other names, in another order; what is not touched keeps its old place in the ledger."""
    folder, source, store = movable
    there = folder.with_name("moved")
    there.mkdir()
    for i, name in enumerate(["z", "a", "m"]):
        shutil.move(folder / f"part-{i}.parquet", there / f"{name}.parquet")
    where = {shard.bytes_id: shard for shard in TABLE.sources(there)[0].shards()}
    docs = {0, LONE}
    leaving = find_rows(store, source, "doc_id", map(name_of, docs), where=where)
    rewrite(store, source, leaving, fast=fast, where=where)
    assert same(store, never_saw("float64", frozenset(docs)))
    assert {Path(s.uri).parent.name for s in store.counted().values()} == {"moved"}
    assert forget(store, source, {1}) is not None


@pytest.mark.parametrize("fast", [False, True])
def test_a_removal_that_fails_in_the_middle_changes_nothing(watched, fast):
    """The log is as it was; the segments that were written already count for nothing, and a second try ends right."""
    there, source = watched
    store = there.store(compacted=True)
    head, before = store.head(), sums(store)
    leaving = find_rows(store, source, "doc_id", [name_of(1)])

    def fail():
        raise ShardError("the disk is gone")

    BEFORE[3] = [fail]
    with pytest.raises(ShardError, match="the disk is gone"):
        rewrite(store, source, leaving, fast=fast, group_rows=1)
    assert len(READ) >= 3
    assert (store.head(), sums(store)) == (head, before)
    assert not verify(store).faults
    BEFORE.clear()
    rewrite(store, source, leaving, fast=fast)
    assert sums(store) == sums(there.never_saw({1}))


def test_only_counted_shards_of_a_store_as_it_is_now_can_leave(movable):
    """An unknown content id, or a store as of a commit, is an error before anything is read."""
    _, source, store = movable
    past = Store(store.place.local, at=1)
    with pytest.raises(StoreError, match="as of commit 1"):
        rewrite(past, source, dict.fromkeys(past.counted()))
    with pytest.raises(MismatchError, match="1 shards that are not counted, such as abcabcabcabc"):
        rewrite(store, source, {"abc" * 20: None})


# Others at work


@pytest.mark.parametrize("fast", [False, True])
def test_a_compaction_meanwhile_is_waited_out(watched, fast):
    """The segment that was counted anew is live no longer: it is found again, and the removal ends right."""
    there, source = watched
    store = there.store()
    leaving = find_rows(store, source, "doc_id", [name_of(1)])
    BEFORE[1] = [lambda: compact(Store(store.place.local))]
    rewrite(store, source, leaving, fast=fast)
    actions = [record.action for record in store.records()]
    assert actions[-1].startswith("forget")
    assert any(action.startswith("compact") for action in actions)
    assert same(store, there.never_saw({1}))


def test_a_count_meanwhile_is_kept(tmp_path, watched):
    """Shards that another run commits between are in the store, as if they had come before or after."""
    there, source = watched
    store = Store.create(tmp_path / "store", TABLE.header())
    (tmp_path / "part").mkdir()
    shutil.copy(there.corpus / "part-0.parquet", tmp_path / "part")
    accumulate(store, *TABLE.sources(tmp_path / "part"))
    leaving = find_rows(store, source, "doc_id", [name_of(1)])
    BEFORE[1] = [lambda: accumulate(Store(store.place.local), there.source)]
    rewrite(store, source, leaving)
    assert len(store.counted()) == 5
    forget(store, there.source, {1})
    assert same(store, there.never_saw({1}))


@pytest.mark.parametrize("theirs", ["the same", "a neighbour"])
def test_another_removal_meanwhile_is_not_undone(watched, theirs):
    """What another took out of the same segment stays out; the same shard cannot leave twice."""
    there, source = watched
    store = there.store(compacted=True)
    held = (store.ledger(segment) for segment in store.head().segments)
    mine, other = next([s.content_id for s in shards][:2] for shards in held if len(shards) > 1)
    gone = mine if theirs == "the same" else other
    BEFORE[1] = [lambda: rewrite(Store(store.place.local), there.source, {gone: None})]
    if theirs == "the same":
        with pytest.raises(MismatchError, match="not counted"):
            rewrite(store, source, {mine: None})
    else:
        rewrite(store, source, {mine: None})
        assert not {mine, other} & store.counted().keys()
    assert len(store.head().removed) == (1 if theirs == "the same" else 2)
    fresh = Store.create(store.place.local / "fresh", store.header)
    rest = [*store.counted()]
    accumulate(fresh, Only(Files(str(there.corpus)), X, ("y",), label=" ".join(rest)))
    assert store.moments() == fresh.moments()


class Only(ParquetTable):
    """A table of the shards that its label names."""

    def shards(self):
        return [shard for shard in super().shards() if shard.content_id in self.label.split()]
