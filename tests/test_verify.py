"""Verification: sound stores have no faults, however their data are; each kind of damage is found and named."""

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from store_helpers import (
    TALLY,
    D,
    K,
    add,
    flip,
    header_of,
    leave_to_the_disk,
    moments_of,
    moved,
    shard_of,
    truncate,
    write,
)

from streamfit.errors import StoreError
from streamfit.features import Linear
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.store import Departure, Header, Removal, Store, collect, compact, digest_of, import_dense, merge, verify
from streamfit.store.ledger import Ledgers
from streamfit.store.sums import digest_of_arrays
from streamfit.targets import Dense


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store with some past: two live segments, one that only earlier commits name, a removal, a pin."""
    store = Store.create(tmp_path_factory.mktemp("verify") / "s", header_of(n_folds=1))
    for number in range(3):
        add(store, number=number, seed=number, tally=TALLY)
    gone = store.holder(shard_of(0).content_id)
    removal = store.write_removal([Departure(shard_of(0).content_id, "k0", 50, True)])
    store.commit(drop=[gone.id], removals=[Removal(*removal, "forgotten", 0, "", 1, 50, (gone.id,))])
    store.pin("now")
    return store


@pytest.fixture
def store(sound, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(sound.place.local, tmp_path / "s")
    return Store(tmp_path / "s")


def faults(store):
    """Faults that somebody else finds, each on a line of its own."""
    found = verify(Store(store.place.local)).faults
    assert not any("\n" in fault for fault in found)
    return found


# Sound stores


def test_sound_store_has_no_faults_and_says_what_was_checked(sound):
    """Log, ledgers, segments live and kept, and removals are all looked at."""
    found = verify(sound)
    assert (found.faults, found.warnings) == ([], [])
    assert found.checked == {
        "log records": 6,
        "commits to go back to": 5,
        "segments of commits to go back to": 1,
        "shards": 2,
        "segments": 2,
        "removals": 1,
        "eigenvalues": D,
    }
    then = verify(Store(sound.place.local, at=3))
    assert then.faults == []
    assert then.digest == digest_of(sum((moments_of(sound.header, n) for n in range(3)), start=sound.zeros()))


def test_empty_store_is_sound(tmp_path):
    """Nothing counted is nothing wrong, nor are rows that all weigh nothing."""
    store = Store.create(tmp_path / "s", header_of())
    found = verify(store)
    assert (found.faults, found.checked) == ([], {"log records": 1})
    light = Moments.from_rows(np.ones((9, D)), np.ones((9, K)), store.header.frame, Dense(K), weights=np.zeros(9))
    store.commit([store.write_segment(light, [shard_of(0)], [9])])
    assert (verify(store).faults, verify(store).warnings) == ([], [])


@settings(max_examples=max(10, settings().max_examples // 2))
@given(
    precision=st.sampled_from(["float32", "float64"]),
    n_rows=st.sampled_from([1, 2, 7, 300, 5000]),
    n_features=st.integers(1, 12),
    rank=st.integers(1, 4),
    weighted=st.booleans(),
    mean=st.sampled_from([0.0, 1.0, 1000.0]),
    seed=st.integers(0, 10**6),
)
def test_rows_that_depend_on_one_another_are_no_fault(precision, n_rows, n_features, rank, weighted, mean, seed):
    """Repeated, proportional and constant features, or fewer rows than features, make a Gram matrix that is singular.

    Rounding then leaves eigenvalues a little below zero, which must not be taken for damage.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(n_rows, rank)) * 10.0 ** rng.uniform(-3, 3, rank) + mean
    x = (base @ rng.choice([-2.0, 0.0, 1.0, 0.3], size=(rank, n_features))).astype(precision)
    y, weights = rng.normal(size=(n_rows, 1)), rng.uniform(size=n_rows) + 1e-3 if weighted else None
    header = Header(Linear(n_features), Dense(1), Frame.from_sample(x[:100], y[:100], Dense(1)), precision, 1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "s", header)
        moments = Moments.from_rows(x, y, header.frame, Dense(1), weights=weights, precision=precision)
        store.commit([store.write_segment(moments, [shard_of(0)], [n_rows])])
        assert verify(store).faults == []


def test_digest_is_of_the_data_alone(sound, tmp_path):
    """Equal data have equal digests, one by one, merged, compacted or from two stores; other data have another."""
    one, two, three = (Store.create(tmp_path / name, sound.header) for name in ("one", "two", "three"))
    add(one, number=1, seed=1)
    add(one, number=2, seed=2)
    both = moments_of(sound.header, 1) + moments_of(sound.header, 2)
    two.commit([two.write_segment(both, [shard_of(1), shard_of(2)], [50, 50])])
    add(three, number=2, seed=2)
    digests = {verify(store).digest for store in (sound, one, two)}
    compact(one)
    collect(one, keep=0, grace=0)
    digests.add(verify(one).digest)
    add(three, number=1, seed=1)
    digests.add(verify(merge([three], tmp_path / "four")).digest)
    assert digests == {digest_of(both)}
    assert verify(Store(three.place.local, at=1)).digest not in digests


def test_outgrown_units_are_a_warning(tmp_path):
    """Features that grew by more than 2^20 since the sample spend their digits on room; that is said, and no fault."""
    header = header_of("float64")
    store = Store.create(tmp_path / "s", moved(header, exponents=header.frame.exponents - 24))
    add(store)
    found = verify(store)
    assert found.faults == []
    (warning,) = found.warnings
    assert f"{D} features have grown by more than 2^20 since the sample" in warning
    small = Store.create(tmp_path / "small", moved(header, exponents=header.frame.exponents + 24))
    add(small)
    assert verify(small).warnings == []


def test_sums_that_were_rounded_elsewhere_are_no_fault(tmp_path):
    """Float32 sums about zero, of features that hardly vary, lose their digits in the shift: a warning says so."""
    store = Store.create(tmp_path / "s", header_of())
    x = np.tile(store.header.frame.origin, (400, 1))
    x[:, 3] = np.random.default_rng(0).normal(size=400)
    y = x[:, :K] * 0.5
    sums = {"gram": x.T @ x, "cross": x.T @ y, "sum_x": x.sum(0), "sum_y": y.sum(0), "sum_yy": (y**2).sum(0)}
    sums = {name: np.nextafter(a.astype(np.float32), np.float32(0)) for name, a in sums.items()}
    np.savez(tmp_path / "a.npz", n_rows=400, weight=400.0, **sums)
    store.commit([import_dense(store, tmp_path / "a.npz", "partner")])
    found = verify(store)
    assert found.faults == []
    (warning,) = found.warnings
    assert "not positive semidefinite" in warning
    assert warning.endswith("that of dense sums that were imported")
    add(store)
    assert verify(store).warnings == []  # a few rows outweigh it


# Damage to files


def segment_files(store, pattern):
    """Files of the first live segment."""
    return sorted((store.place.local / "segments" / store.head().segments[0].id).glob(pattern))


@pytest.mark.parametrize(
    ("array", "damage"),
    [
        *(("gram", damage) for damage in (flip, truncate, Path.unlink)),
        *(("tally_ids_counts", damage) for damage in (flip, Path.unlink)),
        ("gram_fine", truncate),
        ("weight", flip),
        ("sum_yy", Path.unlink),
    ],
)
def test_damaged_chunks_are_found(store, array, damage):
    """A flipped bit, a short file and a missing one, of sums and counts alike: one fault that names the segment."""
    damage(segment_files(store, f"{array}/c/**/0")[-1])
    found = verify(Store(store.place.local))
    (fault,) = found.faults
    where = f"segments/{store.head().segments[0].id}"
    assert (f"chunk {where}/{array}/c/0" if damage is Path.unlink else where) in fault
    assert found.digest == ""


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damaged_ledgers_and_removals_are_found(store, damage):
    """Their digests are in the log, so nobody can change what was counted, or what was forgotten."""
    ledger = store.place.local / "ledgers" / f"{store.head().segments[1].id}.parquet"
    removal = store.place.local / "removals" / f"{store.head().removed[0].id}.parquet"
    for path in (ledger, removal):
        damage(path)
    first, second = faults(store)
    word = "is missing" if damage is Path.unlink else "was altered: its digest does not match the log"
    assert f"ledgers/{ledger.name} {word}" in first
    assert f"removals/{removal.name} {word}" in second


def test_exchanged_ledgers_are_found(store):
    """A whole ledger of another segment is as wrong as a damaged one."""
    a, b = (store.place.local / "ledgers" / f"{segment.id}.parquet" for segment in store.head().segments)
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    assert [path.name in fault for path, fault in zip((a, b), faults(store), strict=True)] == [True, True]


def altered(path):
    path.write_text(path.read_text().replace('"who": "', '"who": "not '))


def copied(path):
    shutil.copy(path.with_name("0000000003.json"), path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (altered, "was altered: its digest does not match"),
        (truncate, "is truncated or not a record"),
        (copied, "says that it is number 3"),
    ],
    ids=["altered", "truncated", "copied"],
)
def test_damaged_records_are_found(store, damage, words):
    """An old record that is not what was committed is a fault that names it; the newest one stops the store itself."""
    log = store.place.local / "_log"
    damage(log / "0000000002.json")
    (fault,) = faults(store)
    assert f"log record _log/0000000002.json {words}" in fault
    damage(log / "0000000005.json")
    with pytest.raises(StoreError, match=f"_log/0000000005.json {words}"):
        Store(store.place.local)


def test_missing_record_stops_the_store(store):
    """A hole in the log is one clear error at once."""
    (store.place.local / "_log" / "0000000002.json").unlink()
    with pytest.raises(StoreError, match=r"log records \[2\] are missing; expected an unbroken log"):
        Store(store.place.local)


def test_altered_header_is_found(store):
    """Its hash is in every record, also in that of a store whose header was exchanged as a whole."""
    flip(next((store.place.local / "header").glob("*/frame/exponents/c/0")))
    (fault,) = faults(store)
    assert "header/" in fault


def test_record_of_another_header_is_found(store):
    """A record with a good digest that names another header is none of this store's."""
    path = store.place.local / "_log" / "0000000002.json"
    path.write_bytes(replace(store.record(2), header="0" * 64).to_bytes())
    assert faults(store) == ["commit 2 names another header"]


@pytest.mark.parametrize("pattern", ["segments/{}", "segments/{}/gram/c/0/0/0", "ledgers/{}.parquet"])
def test_damage_to_a_past_that_is_kept_is_found(store, pattern):
    """What the live segments do not need, but a commit to go back to does: as a whole, a chunk, its ledger."""
    (gone,) = {s.id for s in store.record(1).segments} - {s.id for s in store.head().segments}
    path = store.place.local / pattern.format(gone)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (fault,) = faults(store)
    assert "commit 3 should be kept" in fault
    assert gone in fault
    collect(store, keep=0)
    assert faults(store) == []  # nobody is promised that past any more


def test_all_faults_are_listed(store):
    """One fault does not hide the others."""
    flip(segment_files(store, "gram/c/0/0/0")[0])
    (store.place.local / "ledgers" / f"{store.head().segments[1].id}.parquet").unlink()
    truncate(store.place.local / "_log" / "0000000001.json")
    (store.place.local / "removals" / f"{store.head().removed[0].id}.parquet").unlink()
    assert len(faults(store)) == 4


# Damage that checksums do not see: somebody wrote other numbers


def rewrite(store, array, change, *, forge=True):
    """Write an array of the first live segment anew, with valid checksums; `forge` mends the digest as well."""
    group = zarr.open_group(store.place.local / "segments" / store.head().segments[0].id, mode="r+")
    values = group[array][...]
    change(values)
    group[array][...] = values
    if forge:
        group.attrs["sums"] = digest_of_arrays({name: group[name][...] for name in group.attrs["arrays"]})


def set_at(index, value):
    def change(values):
        values[index] = value

    return change


def one_step_more(values):
    values[0, 0] += 2.0**-16


@pytest.mark.parametrize(
    ("array", "change", "words"),
    [
        ("gram", set_at((0, 1, 2), 2.0**-17 * 3), "gram of segment {} is off its grid"),
        ("sum_x_fine", set_at(0, 2.0**-54), "sum_x of segment {} is off its grid"),
        ("cross", set_at((0, 0), np.nan), "cross of segment {} is off its grid"),
        ("gram", set_at((0, 2, 2), -(2.0**20)), "segment {} has a negative sum of squares"),
        ("sum_yy", set_at(1, -64.0), "segment {} has a negative sum of squares"),
        ("weight", set_at(0, -1.0), "segment {} has a negative sum of squares"),
        ("gram", set_at((0, 0, 1), 2.0**20), "the Gram matrix is not positive semidefinite: an eigenvalue of -"),
        ("tally_ids_counts", set_at(0, 0), "counts ids of segment {} are not a table of positive counts"),
        ("cross", one_step_more, None),
    ],
)
def test_other_numbers_with_good_checksums_are_found(store, array, change, words):
    """Numbers that no sum of rows can be are faults; likely ones change the digest, and reading rows again tells."""
    digest = verify(store).digest
    rewrite(store, array, change)
    found = verify(Store(store.place.local))
    if words is None:
        assert found.faults == []
    else:
        assert any(words.format(store.head().segments[0].id) in fault for fault in found.faults)
    assert found.digest != digest or array.startswith("tally")


@pytest.mark.parametrize("array", ["gram", "cross", "sum_x_fine", "tally_ids_counts"])
def test_sums_that_were_put_in_anothers_place_are_found(store, array):
    """Whatever they are: each segment says what it was written with, and whose ledger it goes with."""
    rewrite(store, array, lambda values: values.__setitem__(..., values[::-1].copy() + 1), forge=False)
    (fault,) = [f for f in faults(store) if "kept" not in f]
    assert "holds other sums than it was written with" in fault


def test_a_segment_in_anothers_place_is_found(store):
    one, other = (store.place.local / "segments" / s.id for s in store.head().segments[:2])
    shutil.rmtree(one)
    shutil.copytree(other, one)
    assert any("does not belong to this store's log" in fault for fault in faults(store))
    with pytest.raises(StoreError, match="does not belong to this store's log"):
        Store(store.place.local).moments()


def test_rows_that_the_log_says_otherwise_are_found(store):
    """The attributes of a segment are checked against the log, for checksums do not cover them."""
    path = segment_files(store, "zarr.json")[0]
    data = json.loads(path.read_text())
    data["attributes"]["n_rows"] += 1
    path.write_text(json.dumps(data))
    (fault,) = faults(store)
    assert "does not belong to this store's log" in fault


# Commits that should never have been


@pytest.fixture
def lax(monkeypatch):
    """Commits that nobody checks, as a faulty writer of another make would put."""
    monkeypatch.setattr(Ledgers, "refuse_repeats", lambda *_: None)


@pytest.mark.usefixtures("lax")
def test_content_that_is_counted_twice_is_found(store):
    """By the content, whatever the shard is called."""
    store.commit([write(store, shard_of(1, key="again"))])
    assert faults(store) == [f"content {shard_of(1).content_id[:12]} is counted 2 times"]


@pytest.mark.usefixtures("lax")
def test_bytes_under_two_divisions_are_found(store):
    """Parts by two label columns may share rows."""
    file = shard_of(7).content_id
    for number, column in ((8, "lang"), (9, "site")):
        store.commit([write(store, shard_of(number, select=((column, "x"),), within=file))])
    assert faults(store) == [f"bytes {file[:12]} are counted under several divisions"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_shards": 2}, "the ledger of segment {} has other shards or rows than the log says"),
        ({"source": "x"}, "segment {} holds shards of other folds or labels than the log says"),
        ({"labels": (("time", "2026"),)}, "segment {} holds shards of other folds or labels than the log says"),
        ({"fold": 3}, "segment {} holds shards of other folds or labels than the log says"),
    ],
)
def test_log_that_disagrees_with_a_ledger_is_found(store, changes, words):
    """Numbers of shards, fold, source and labels of each segment are those of its shards."""
    segment = replace(write(store, shard_of(50)), **changes)
    store.commit([segment])
    assert faults(store) == [words.format(segment.id)]
