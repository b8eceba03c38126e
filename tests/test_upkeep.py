"""Keeping a store small: compaction changes no bit, no commit exceeds the bound, collection takes only what may go."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import add, everything, folders, header_of, leave_to_the_disk, moments_of, shard_of, write

from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.store import (
    FullError,
    Segment,
    Store,
    collect,
    commit_merged,
    compact,
    make_room,
    merge_segments,
    mergeable,
    verify,
)

SOURCES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store", header_of("float32", n_features=2, n_folds=1), max_live=4, keep=2)


def tally_of(seed):
    keys = np.arange(seed, seed + 4)[:, None] % 5
    return {"ids": (np.sort(keys, axis=0), np.arange(1, 5) + seed)}


# Compaction


def test_compaction_merges_equal_kinds_and_changes_nothing_else(tmp_path):
    """Fold, source and labels stay apart; sums, tables, shards and their holders are what they were, bit for bit."""
    store = Store.create(tmp_path / "s", header_of(n_folds=2))
    labels = ((("time", "2026-01"),), (("time", "2026-02"),))
    for number in range(10):
        add(
            store,
            number=number,
            seed=number,
            tally=tally_of(number),
            source="ab"[number % 5 == 0],
            labels=labels[number % 3 == 0],
        )
    before, folds = everything(store), store.fold_moments()
    kinds = {segment.kind for segment in store.head().segments}
    assert compact(store) == 10 - len(kinds)
    after = Store(store.place.local)
    assert sorted(s.kind for s in after.head().segments) == sorted(kinds)
    assert everything(after) == before
    assert after.fold_moments() == folds
    for number in range(10):
        holder = after.holder(shard_of(number).content_id)
        assert holder.source == "ab"[number % 5 == 0]
        assert f"k{number}" in [shard.key for shard in after.ledger(holder)]
    assert compact(after) == 0
    assert verify(after).faults == []


def test_compaction_keeps_what_only_the_ledger_knows(store):
    """Selections, left-out rows and row counts of shards come through a merge as they were."""
    parts = [
        shard_of(1, select=(("lang", "de"),), within=shard_of(7).content_id),
        shard_of(2, select=(("lang", "en"),), within=shard_of(7).content_id, without=(1, 4)),
        shard_of(3, without=(0,)),
    ]
    store.commit([write(store, shard) for shard in parts])
    before = store.counted()
    compact(store)
    assert len(store.head().segments) == 1
    assert Store(store.place.local).counted() == before
    assert before[parts[1].content_id].without == (1, 4)


def test_lost_race_of_a_compaction_changes_nothing(store):
    """If another writer drops or merges a part between the merge and its commit, the merge is thrown away."""
    for seed in range(3):
        add(store, seed=seed)
    parts = mergeable(store.head())[0]
    merged = merge_segments(store, parts, store)
    other = Store(store.place.local)
    other.commit(drop=[parts[0].id])
    head, before = other.head(), everything(other)
    assert not commit_merged(store, parts, merged)
    assert merged.id not in folders(store)
    assert store.head() == Store(store.place.local).head() == head
    assert everything(store) == before
    assert compact(store) == 1
    assert everything(store) == before


def test_compaction_meets_another_and_its_collection(store, monkeypatch):
    """If another process merges the same parts and deletes them meanwhile, its merge stands; damage is an error."""
    total = sum((add(store, seed=seed) for seed in range(3)), start=store.zeros())
    read, other = Store.read, Store(store.place.local)

    def read_late(self, segment):
        if self is store:
            compact(other)
            collect(other, keep=0, grace=0)
        return read(self, segment)

    monkeypatch.setattr(Store, "read", read_late)
    assert compact(store) == 2
    monkeypatch.undo()
    assert store.moments() == total
    assert [record.action for record in store.records()][-2:] == ["compact 3 segments", "keep 0"]
    add(store)
    next((store.place.local / "segments").glob("*/gram/c/0/0/0")).unlink()
    with pytest.raises(StoreError, match="is missing"):
        compact(store)


def test_merge_meets_commits_of_others_that_touch_other_segments(store):
    """A merge whose parts still stand lands beside what was added meanwhile, through whichever Store object."""
    total = sum((add(store, seed=seed) for seed in range(2)), start=store.zeros())
    parts = mergeable(store.head())[0]
    merged = merge_segments(store, parts, store)
    other = Store(store.place.local)
    total = total + add(other, seed=5)
    assert commit_merged(store, parts, merged)
    total = total + add(other, seed=6)
    assert store.moments() == other.moments() == Store(store.place.local).moments() == total
    assert [record.action for record in store.records()] == ["create", "add", "add", "add", "compact 2 segments", "add"]


# The bound


@pytest.mark.parametrize("sources", ["ssssss", "abcdef"], ids=["one kind", "many kinds"])
def test_commits_beyond_the_bound_are_refused(store, sources):
    """`max_live` holds, and two for each kind where that is more; room is made by compaction alone."""
    bound = 4 if len(set(sources)) == 1 else 12
    for i in range(bound):
        add(store, source=sources[i % len(sources)])
    head = store.head()
    assert len(head.segments) == head.bound == bound
    with pytest.raises(
        FullError, match=f"{bound + 1} live segments; expected at most {bound}; run `streamfit compact`"
    ):
        add(store, source=sources[0])
    assert store.head() == head
    before = everything(store)
    make_room(store, 1)
    assert everything(store) == before
    add(store, source=sources[0])
    assert len(store.head().segments) == len(set(sources)) + 1


def test_room_is_made_only_where_there_is_none(store):
    """Within the bound nothing is merged."""
    add(store)
    sequence = store.head().sequence
    make_room(store, 3)
    assert store.head().sequence == sequence


def test_bound_holds_when_the_last_of_a_kind_leaves(store):
    """The bound goes by the kinds that stay, so a commit that takes some out may have to wait for a compaction."""
    for source in "abcaaa":
        add(store, source=source)
    head = store.head()
    assert (len(head.segments), head.bound) == (6, 6)
    leaving = [segment.id for segment in head.segments if segment.source == "c"]
    with pytest.raises(FullError, match="5 live segments; expected at most 4"):
        store.commit(drop=leaving)
    assert store.head() == head
    compact(store)
    record = store.commit(drop=[segment.id for segment in store.head().segments if segment.source == "c"])
    assert len(record.segments) == 2


def test_new_bound_is_kept_and_cannot_be_undercut(store):
    """`compact(max_live=)` changes the policy of the store; others keep to it, and no bound is below what is live."""
    for _ in range(4):
        add(store)
    with pytest.raises(FullError, match="4 live segments; expected at most 2"):
        store.amend("max_live 2", lambda _: {"max_live": 2})
    other = Store(store.place.local)
    compact(store, max_live=2)
    assert (other.head().max_live, other.head().bound, len(other.head().segments)) == (2, 2, 1)
    add(other)
    with pytest.raises(FullError, match="at most 2"):
        add(other)
    compact(other, max_live=2)  # nothing to change: no commit for the policy
    assert other.head().action == "compact 2 segments"
    for wrong in ({"max_live": 1}, {"max_live": 2, "keep": -1}):
        with pytest.raises(ConfigError, match="max_live of at least 2"):
            Store.create(store.place.local, store.header, **wrong)
    with pytest.raises(ConfigError, match="max_live of at least 2"):
        compact(store, max_live=1)


# Any sequence of commits


@dataclass
class Model:
    """What a store should hold: live segments as sets of numbers, for every commit, and the policy."""

    live: list[tuple[str, frozenset[int]]]
    max_live: int
    keep: int
    pins: dict[str, int]
    horizon: int
    history: list[list[tuple[str, frozenset[int]]]]

    def commit(self, live=None, **policy):
        """Note a commit; False if it must be refused because the store would be too full."""
        live = self.live if live is None else live
        bound = max(policy.get("max_live", self.max_live), 2 * len({source for source, _ in live}))
        if len(live) > bound:
            return False
        self.live = live
        for name, value in policy.items():
            setattr(self, name, value)
        self.history.append(live)
        return True

    @property
    def oldest(self):
        return max(self.horizon, len(self.history) - 1 - self.keep)

    def readable(self):
        return {*range(self.oldest, len(self.history)), *self.pins.values()}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A store with twelve uncommitted segments of three sources, and their moments."""
    store = Store.create(tmp_path_factory.mktemp("pool") / "s", header_of("float32", n_features=2, n_folds=1))
    segments = [write(store, shard_of(n, SOURCES[n % 3]), seed=n) for n in range(12)]
    return store, segments, [moments_of(store.header, n) for n in range(12)]


def bring(pool, store, segment: Segment):
    """As a worker that writes the segment into the store, without the time that this takes."""
    here, there = store.place.local, pool.place.local
    shutil.copytree(there / "segments" / segment.id, here / "segments" / segment.id, dirs_exist_ok=True)
    (here / "ledgers").mkdir(exist_ok=True)
    shutil.copy(there / "ledgers" / f"{segment.id}.parquet", here / "ledgers")


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add"] * 8 + ["compact"] + ["drop", "pin", "unpin", "collect", "keep", "max_live", "expire"] * 2
        ),
        st.integers(0, 11),
    ),
    min_size=6,
    max_size=18,
)


@settings(max_examples=max(12, settings().max_examples // 2))
@given(OPERATIONS, st.integers(2, 4), st.integers(0, 3))
def test_any_sequence_of_commits_keeps_sums_bound_and_disk(pool, operations, max_live, keep):
    """After each step the shards are the model's and the bound holds; after all, so do sums, past commits and the disk.

    Commits beyond the bound are refused exactly where the model says so. Each commit that the policy or a pin keeps
    gives its old sums bit for bit; every other is an error; collection leaves what those need and nothing else.
    """
    source, segments, moments = pool
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", source.header, max_live=max_live, keep=keep)
        model = Model([], max_live, keep, {}, 0, [[]])
        for step, (operation, number) in enumerate(operations):
            try:
                apply(operation, number, step, store, model, source, segments)
            except FullError:
                assert len(store.records()) == len(model.history)
            head = store.head()
            assert head.sequence == len(model.history) - 1
            assert {shard.key for shard in store.counted().values()} == {
                f"k{n}" for _, held in model.live for n in held
            }
            assert len(head.segments) == len(model.live) <= head.bound
        records = store.records()
        assert all(len(record.segments) <= record.bound for record in records)
        collect(store, grace=0)
        needed = {s.id for n in model.readable() for s in records[n].segments}
        pinned = {s.id for n in model.pins.values() for s in records[n].segments}
        assert folders(store) == needed == {p.stem for p in (store.place.local / "ledgers").glob("*")}
        assert len(needed) <= records[model.oldest].bound + model.keep + len(pinned)
        known = {}
        for n, live in enumerate(model.history):
            held = frozenset().union(*(numbers for _, numbers in live))
            if n not in model.readable():
                with pytest.raises(StoreError, match=f"commit {n}, whose segments are no longer kept"):
                    Store(store.place.local, at=n)
                continue
            ids = frozenset(s.id for s in records[n].segments)
            if ids not in known:
                known[ids] = Store(store.place.local, at=n).moments()
            assert known[ids] == sum((moments[i] for i in held), start=store.zeros())
        assert store.records() == records
        assert verify(store).faults == []


def apply(operation, number, step, store, model, source, segments):
    """One step on the store and on the model, which must agree on whether it is refused."""

    def change(act, live=None, **policy):
        if model.commit(live, **policy):
            act()
        else:
            with pytest.raises(FullError):
                act()

    if operation == "add":
        if any(number in held for _, held in model.live):
            with pytest.raises(MismatchError, match="is counted already"):
                store.commit([write(store, shard_of(number, SOURCES[number % 3]))])
            return
        bring(source, store, segments[number])
        added = [*model.live, (SOURCES[number % 3], frozenset([number]))]
        change(lambda: store.commit([segments[number]]), added)
    elif operation == "drop" and model.live:
        leaving = number % len(model.live)
        leaves = store.head().segments[leaving]
        left = [item for i, item in enumerate(model.live) if i != leaving]
        change(lambda: store.commit(drop=[leaves.id]), left)
    elif operation == "compact":
        groups = mergeable(store.head())
        compact(store)
        for group in groups:
            held = {shard.key for segment in group for shard in store.ledger(segment)}
            merged = frozenset(int(key[1:]) for key in held)
            rest = [item for item in model.live if not item[1] <= merged]
            assert model.commit([*rest, (group[0].source, merged)])
    elif operation == "max_live":
        change(lambda: store.amend("max_live", lambda _: {"max_live": 2 + number % 3}), max_live=2 + number % 3)
    elif operation == "pin":
        target = number % len(model.history)
        if target in model.readable():
            model.commit(pins={**model.pins, f"p{step}": target})
            store.pin(f"p{step}", target)
        else:
            with pytest.raises(StoreError, match="no longer kept"):
                store.pin(f"p{step}", target)
    elif operation == "unpin" and model.pins:
        name = list(model.pins)[number % len(model.pins)]
        model.commit(pins={pin: n for pin, n in model.pins.items() if pin != name})
        store.unpin(name)
    elif operation == "expire":
        model.commit(horizon=len(model.history) - 1)
        store.amend("expire", lambda head: {"horizon": head.sequence})
    elif operation == "keep":
        if number % 4 != model.keep:
            model.commit(keep=number % 4, horizon=model.oldest)
        collect(store, keep=number % 4, grace=0)
    elif operation == "collect":
        collect(store, grace=0)
