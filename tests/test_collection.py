"""Collection and going back: what a commit, a pin or a running writer needs stays; everything else goes."""

import os
import time
import uuid
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from store_helpers import add, everything, folders, header_of, leave_to_the_disk, moments_of, shard_of, write

from streamfit.errors import ConfigError, StoreError
from streamfit.store import Collected, Departure, Place, Store, collect, compact, verify
from streamfit.store.log import record_key


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store", header_of("float32", n_features=2, n_folds=1), keep=2)


def age(path, seconds):
    """Make all files below a path look older."""
    then = time.time() - seconds
    for item in [path, *path.rglob("*")]:
        os.utime(item, (then, then))


def size(store):
    return sum(path.stat().st_size for path in store.place.local.rglob("*") if path.is_file())


def names(store):
    return {path.relative_to(store.place.local).as_posix() for path in store.place.local.rglob("*") if path.is_file()}


def ids(record):
    return {segment.id for segment in record.segments}


# What goes and what stays


def test_nothing_of_a_young_store_is_collected(store):
    """A store that needs all its files keeps them, whatever the grace, and nothing is reported as deleted."""
    for _ in range(2):
        add(store)
    before = names(store)
    assert collect(store, grace=0) == Collected(0, 0, 0)
    assert names(store) == before


def test_orphans_go_when_they_are_older_than_the_grace(store):
    """What no commit names is left to its writer for a while: segments, their ledgers, lists of removals, headers."""
    add(store)
    old, young = (write(store, shard_of(100 + i)) for i in range(2))
    removals = [store.write_removal([Departure(shard_of(1).content_id, "k1", 1, True)])[0] for _ in range(2)]
    local = store.place.local
    (local / "header" / "unused").mkdir()
    (local / "header" / "unused" / "zarr.json").write_text("{}")
    for name in (f"segments/{old.id}", f"ledgers/{old.id}.parquet", f"removals/{removals[0]}.parquet", "header/unused"):
        age(local / name, 4000)
    before, held = names(store), size(store)
    done = collect(store, grace=3600)
    gone = before - names(store)
    assert {name.split("/")[0] for name in gone} == {"segments", "ledgers", "removals", "header"}
    assert all(old.id in name or removals[0] in name or "unused" in name for name in gone)
    assert (done.segments, done.orphans, done.n_bytes) == (0, 1, held - size(store))
    assert young.id in folders(store)
    store.commit([young])
    assert Store(local).moments() == moments_of(store.header) + moments_of(store.header)
    assert verify(store).faults == []


def test_segment_that_is_still_being_written_is_left(store):
    """Part of a segment without a ledger, as a worker leaves it in the middle of its work, survives; then it counts."""
    add(store)
    segment = write(store, shard_of(100), seed=3)
    ledger = store.place.local / "ledgers" / f"{segment.id}.parquet"
    data = ledger.read_bytes()
    ledger.unlink()
    age(store.place.local / "segments" / segment.id / "gram", 1e6)  # its first file is old, its last one is not
    compact(store)
    collect(store)
    ledger.write_bytes(data)
    store.commit([segment])
    assert store.read(segment) == moments_of(store.header, 3)


def test_expired_segments_go_at_once(store):
    """What was committed and has expired is no writer's work, so it goes however young it is."""
    for seed in range(3):
        add(store, seed=seed)
    parts, before = ids(store.head()), everything(store)
    compact(store)
    held = size(store)
    assert collect(store) == Collected(0, 0, 0)  # the commits before the merge can still be gone back to
    store.amend("expire", lambda head: {"horizon": head.sequence})
    done = collect(store)
    assert (done.segments, done.orphans) == (3, 0)
    assert done.n_bytes >= 0.5 * held
    assert folders(store) == ids(store.head())
    assert not folders(store) & parts
    assert everything(Store(store.place.local)) == before


@pytest.mark.parametrize("grace", [0, 3600])
def test_what_was_committed_long_ago_is_no_orphan(store, grace):
    """Segments that earlier commits gave up have expired, however old they are; what nobody committed is an orphan."""
    for number in range(4):
        add(store, number=number)
        store.commit(drop=ids(store.head()))
    never = write(store, shard_of(9))
    add(store)
    for name in [*ids_of_all(store), never.id]:
        age(store.place.local / "segments" / name, 7200)
        age(store.place.local / "ledgers" / f"{name}.parquet", 7200)
    rewind(store, 7000)
    done = collect(Store(store.place.local), keep=0, grace=grace)
    assert (done.segments, done.orphans) == (4, 1)
    assert folders(store) == ids(store.head())


def ids_of_all(store):
    """Segments that any commit named."""
    return set().union(*map(ids, store.records()))


def rewind(store, seconds):
    """Make all commits look older."""
    for record in store.records():
        then = datetime.fromisoformat(record.when) - timedelta(seconds=seconds)
        older = replace(record, when=then.isoformat(timespec="seconds"))
        (store.place.local / record_key(record.sequence)).write_bytes(older.to_bytes())


@pytest.mark.parametrize("name", ["_log/.{}.partial", "segments/gram#7"])
def test_half_written_files_of_killed_writers_go(store, name):
    """Staged files are deleted once they are older than the grace, which is never taken for less than a minute."""
    path = store.place.local / name.format(uuid.uuid4().hex)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"half")
    collect(store, grace=0)
    assert path.exists()
    age(path, 3600)
    collect(store, grace=7200)
    assert path.exists()
    collect(store, grace=1800)
    assert not path.exists()


def test_log_is_never_collected(store):
    """Every record stays for ever: a stale writer could otherwise take its number a second time."""
    for seed in range(4):
        add(store, seed=seed)
    compact(store)
    before = store.records()
    age(store.place.local, 1e7)
    collect(store, keep=0, grace=0)
    assert store.records()[:-1] == before
    assert [record.sequence for record in Store(store.place.local).records()] == list(range(len(before) + 1))


def test_disk_is_bounded_over_a_long_run(tmp_path):
    """Adding, merging and collecting for long leaves at most `bound + keep` segments on disk after each collection."""
    store = Store.create(tmp_path / "s", header_of("float32", n_features=2, n_folds=1), max_live=4, keep=3)
    for number in range(24):
        if len(store.head().segments) == store.head().bound:
            compact(store)
            collect(store, grace=0)
            assert len(folders(store)) <= store.head().bound + store.head().keep
        add(store, number=number)
    assert len(store.counted()) == 24


def test_segment_that_is_committed_during_a_collection_stays(store, monkeypatch):
    """Even with no grace: what was listed as an orphan and committed a moment later is not deleted."""
    add(store)
    segment = write(store, shard_of(100))
    listing, other = Place.list, Store(store.place.local)

    def commit_then_list(place, prefix, after=None):
        if prefix == "segments/" and segment.id not in ids(other.head()):
            other.commit([segment])
        return listing(place, prefix, after)

    monkeypatch.setattr(Place, "list", commit_then_list)
    collect(store, grace=0)
    monkeypatch.undo()
    assert segment.id in ids(store.head())
    assert verify(Store(store.place.local)).faults == []


def test_sum_is_of_one_commit_though_its_segments_are_collected_meanwhile(store, monkeypatch):
    """A reader whose segments are merged and deleted by another process in the middle of the sum begins anew."""
    total = sum((add(store, seed=seed) for seed in range(3)), start=store.zeros())
    read, other, calls = Store.read, Store(store.place.local), []

    def read_slowly(self, segment):
        if self is not store:  # the other's own merging
            return read(self, segment)
        calls.append(segment)
        if len(calls) == 2:
            compact(other)
            collect(other, keep=0, grace=0)
        return read(self, segment)

    monkeypatch.setattr(Store, "read", read_slowly)
    assert store.moments() == total
    assert len(calls) == 3  # one of the first commit, one that was gone, and all in one
    monkeypatch.undo()
    damaged = next((store.place.local / "segments").glob("*/gram/c/0/0/0"))
    damaged.unlink()
    with pytest.raises(StoreError, match="is missing"):
        store.moments()


# Going back


def test_kept_and_pinned_commits_give_their_old_sums(store):
    """By number and by name, bit for bit, with the shards of that commit; others say what can be gone back to."""
    sums = [store.zeros()]
    for seed in range(6):
        sums.append(sums[-1] + add(store, number=seed, seed=seed))
        if seed == 1:
            store.pin("spring")  # commit 3 keeps what commit 2 counted
    compact(store)  # commit 8
    collect(store, grace=0)
    for at, n_shards in (("spring", 2), (6, 5), (7, 6), (8, 6)):
        then = Store(store.place.local, at=at)
        assert then.moments() == then.fold_moments()[0] == sums[n_shards]
        assert {shard.key for shard in then.counted().values()} == {f"k{n}" for n in range(n_shards)}
    assert len(Store(store.place.local, at=7).records()) == 8
    with pytest.raises(StoreError, match=r"commit 5, whose segments are no longer kept; expected 6 to 8, or a pin"):
        Store(store.place.local, at=5)
    for unknown in (9, "autumn", "-1", "²", ""):
        with pytest.raises(StoreError, match=rf"commit {unknown!r}; expected one of 6 to 8, or a pin \(spring\)"):
            Store(store.place.local, at=unknown)
    assert Store(store.place.local, at="7").head() == Store(store.place.local, at=7).head()


def test_pins_have_new_names_and_readable_commits(store):
    """A name is used once and is no number; only what can be gone back to can be pinned; unpinning frees both."""
    for _ in range(4):
        add(store)
    store.pin("a", 3)
    sequence = store.head().sequence
    for name in ("a", "", "12"):
        with pytest.raises(StoreError, match=f"pin {name!r}; expected a new name that is not a number"):
            store.pin(name)
    with pytest.raises(StoreError, match="no longer kept"):
        store.pin("b", 1)
    with pytest.raises(StoreError, match="no pin 'b'; expected one of a"):
        store.unpin("b")
    assert store.head().sequence == sequence
    store.unpin("a")
    with pytest.raises(StoreError, match="none, for there are none"):
        store.unpin("a")
    store.pin("a")
    assert [(pin.name, pin.sequence) for pin in store.head().pins] == [("a", 6)]
    assert [record.action for record in store.records()][5:] == ["pin a", "unpin a", "pin a"]


def test_pinned_segments_go_after_unpinning(store):
    """Collection takes the segments of a commit once nothing names them any more."""
    add(store, seed=1)
    store.pin("first")
    before = ids(store.head())
    store.commit(drop=before)
    for _ in range(3):
        add(store)
    collect(store, grace=0)
    assert before <= folders(store)
    assert Store(store.place.local, at="first").moments() == moments_of(store.header, 1)
    store.unpin("first")
    collect(store, grace=0)
    assert not before & folders(store)
    with pytest.raises(StoreError, match="commit 'first'"):
        Store(store.place.local, at="first")


def test_past_is_read_only(store):
    """A store as of a commit takes no commit, pin or merge; least of all does it collect what came later."""
    for seed in range(3):
        add(store, seed=seed)
    then = Store(store.place.local, at=1)
    age(store.place.local, 1e6)
    before = names(store)
    acts = (
        lambda: then.commit(drop=ids(then.head())),
        lambda: then.pin("x"),
        lambda: compact(then),
        lambda: collect(then, grace=0),
        lambda: collect(then, keep=0),
        lambda: then.amend("keep", lambda _: {"keep": 5}),
    )
    for act in acts:
        with pytest.raises(StoreError, match="as of commit 1; expected the store as it is now"):
            act()
    assert names(store) == before


def test_larger_keep_does_not_promise_what_is_gone(store):
    """Commits that expired under a smaller number stay expired; those from then on are kept longer."""
    for seed in range(6):
        add(store, seed=seed)
    compact(store)
    collect(store, keep=1, grace=0)  # commit 8: from 7 on one can go back
    collect(store, keep=16, grace=0)  # commit 9
    assert (store.head().sequence, store.head().keep, store.head().oldest) == (9, 16, 7)
    with pytest.raises(StoreError, match="commit 5, whose segments are no longer kept"):
        Store(store.place.local, at=5)
    add(store)
    compact(store)
    for at in range(7, 12):
        assert len(Store(store.place.local, at=at).counted()) == (7 if at > 9 else 6)
    assert verify(store).faults == []
    with pytest.raises(ConfigError, match="keep -1"):
        collect(store, keep=-1)


def test_horizon_gives_up_all_but_pins(store):
    """After it no earlier commit can be read, however many are to be kept; a pinned one can."""
    sums = [store.zeros()]
    for seed in range(3):
        sums.append(sums[-1] + add(store, number=seed, seed=seed))
    store.pin("one", 1)
    compact(store)
    store.amend("purge", lambda head: {"horizon": head.sequence})
    collect(store, grace=0)
    assert Store(store.place.local, at="one").moments() == sums[1]
    with pytest.raises(StoreError, match="expected 5 to 6"):
        Store(store.place.local, at=4)
    assert Store(store.place.local, at=5).moments() == sums[3]
    assert len(folders(store)) == 2
