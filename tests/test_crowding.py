"""A store that many groups are counted into stays small meanwhile, and two runs may crowd it together."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from corpora import KINDS, columns, sums, unsynced, write_groups  # noqa: F401

from streamfit.corpus import ParquetTable
from streamfit.engine import WorkOptions, accumulate, work_group
from streamfit.engine.crew import Crew
from streamfit.engine.upkeep import Upkeep
from streamfit.engine.work import sum_shards
from streamfit.plan import make_groups
from streamfit.store import Store, collect, compact, verify

KIND = KINDS["float32"]
N_GROUPS, ROWS, MAX_LIVE, KEEP = 20, 10, 4, 2
SEEN: list[int] = []


def n_folders(store: Store) -> int:
    """Segments on disk, live or not."""
    return sum(1 for path in (store.place.local / "segments").iterdir() if path.is_dir())


class Counting(ParquetTable):
    """A table that looks how many segments there are on disk while it is read; its label says where."""

    def read(self, shard):
        SEEN.append(sum(1 for path in Path(self.label).glob("segments/*") if path.is_dir()))
        yield from super().read(shard)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """One file of many small row groups."""
    folder, table = tmp_path_factory.mktemp("corpus"), pa.table(columns())
    write_groups(folder / "a.parquet", [table.slice(ROWS * i, ROWS) for i in range(N_GROUPS)])
    return folder


@pytest.fixture
def store(tmp_path):
    """An empty store of one kind of segment, with little room."""
    return Store.create(tmp_path / "store", replace(KIND.header(), n_folds=1), max_live=MAX_LIVE, keep=KEEP)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, corpus):
    """Sums of all rows, in memory."""
    (source,) = KIND.sources(corpus)
    return sum_shards(Store.create(tmp_path_factory.mktemp("s"), KIND.header()), source, source.shards(), WorkOptions())


def test_a_run_keeps_its_store_small(corpus, store, expected):
    """The bound holds at every commit; the disk holds no more than twice that, kept commits, and what is written."""
    (table,) = KIND.sources(corpus)
    SEEN.clear()
    source = Counting(table.files, table.features, table.target, label=str(store.place.local))
    summary = accumulate(store, source, group_rows=ROWS)
    assert summary.n_shards == N_GROUPS
    records = store.records()
    assert [r.bound for r in records] == [MAX_LIVE] * len(records)
    assert max(len(r.segments) for r in records) == MAX_LIVE
    assert len(records) > N_GROUPS, "merges are commits too"
    assert max(SEEN) <= 2 * MAX_LIVE + KEEP + 1
    collect(store)
    assert n_folders(store) <= MAX_LIVE + KEEP
    assert store.moments() == expected.moments
    assert not verify(store).faults


def test_a_run_that_is_outpaced_compacts_by_itself(corpus, store, expected, monkeypatch):
    """Where merges come too late for the commits, the coordinator makes room before it commits."""
    monkeypatch.setattr("streamfit.engine.upkeep._CROWDED", 2.0)
    accumulate(store, *KIND.sources(corpus), group_rows=ROWS)
    assert max(len(r.segments) for r in store.records()) == MAX_LIVE
    assert store.moments() == expected.moments


def test_two_runs_share_a_small_store(corpus, store, expected):
    """Each counts, merges and collects while the other does: no error, each shard once, equal bits."""
    (source,) = KIND.sources(corpus)
    done, faults = [], []

    def run():
        try:
            done.append(accumulate(Store(store.place.local), source, group_rows=ROWS))
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    counted = [shard.content_id for segment in store.head().segments for shard in store.ledger(segment)]
    assert len(counted) == len({*counted}) == N_GROUPS
    assert sum(summary.n_shards for summary in done) == N_GROUPS
    assert all(len(record.segments) <= record.bound for record in store.records())
    assert store.moments() == expected.moments


def test_a_merge_whose_parts_were_merged_by_another_is_dropped(corpus, store, expected):
    """Its segments are gone from the disk before it reads them: that is no fault of the run."""
    (source,) = KIND.sources(corpus)
    workers = Crew(store, source, WorkOptions(), lambda _: None)
    upkeep = Upkeep(store, workers)
    groups = make_groups(source.shards(), 1, ROWS)
    for group in groups[:MAX_LIVE]:
        upkeep.commit([work_group(store, source, group, WorkOptions()).segment], [])
    other = Store(store.place.local)
    compact(other)
    other.amend("expire", lambda head: {"horizon": head.sequence})
    collect(other)
    outcomes = list(workers.results())
    assert [result for _, result in outcomes] == [None]
    upkeep.merged(*outcomes[0])
    accumulate(store, source, group_rows=ROWS)
    assert store.moments() == expected.moments


def test_sums_do_not_show_where_they_were_merged(corpus, store):
    """One segment or many: the same rows, limbs and ledger."""
    accumulate(store, *KIND.sources(corpus), group_rows=ROWS)
    before, counted = sums(store), store.counted()
    compact(store)
    assert len(store.head().segments) == 1
    assert (sums(store), store.counted()) == (before, counted)
