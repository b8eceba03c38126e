"""The store: what is written is read back bit for bit, counts once and atomically, and damage is an error."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from store_helpers import D, K, add, flip, header_of, moments_of, shard_of, truncate

from streamfit.errors import MismatchError, StoreError
from streamfit.exact import COARSE
from streamfit.moments import Moments
from streamfit.store import Refusal, Store
from streamfit.targets import Dense, OneHot


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store", header_of())


# Making and opening


def test_same_header_opens_the_store_that_is_there(tmp_path):
    """Creating again is opening, also from elsewhere, and the header comes back equal."""
    header = header_of(reader={"columns": ["a"]}, files={"tokenizer": b"\x00{}"})
    first = Store.create(tmp_path / "deep" / "store", header)
    moments = add(first)
    for again in (Store.create(first.place.local, header_of(**vars_of(header))), Store(str(first.place.local))):
        assert again.header.content_hash == header.content_hash
        assert again.header.files == header.files
        assert again.moments() == moments


def vars_of(header):
    return {name: getattr(header, name) for name in ("precision", "targets", "n_folds", "reader", "files")}


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"precision": "float32"}, "precision"),
        ({"n_folds": 4}, "n_folds"),
        ({"reader": {"columns": ["b"]}}, "reader"),
        ({"files": {"tokenizer": b"x"}}, "files"),
        ({"targets": OneHot(K)}, "targets, frame/y_exponents"),
        ({"n_features": D + 1}, "features, tile, frame/exponents, frame/origin"),
    ],
)
def test_another_header_is_refused_naming_what_differs(store, changes, differing):
    """Sums taken otherwise do not add up, so a store keeps the header that it was made with."""
    with pytest.raises(MismatchError, match=f"was made with other {differing}"):
        Store.create(store.place.local, header_of(**changes))


def test_only_stores_are_opened_and_only_empty_folders_become_stores(tmp_path):
    """A file, a folder with something else in it, and nothing at all are told apart."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    for name in ("file", "full", "nothing"):
        with pytest.raises(StoreError, match="is not a store"):
            Store(tmp_path / name)
    with pytest.raises(StoreError, match="is a file"):
        Store.create(tmp_path / "file", header_of())
    with pytest.raises(StoreError, match=r"holds thesis\.tex"):
        Store.create(tmp_path / "full", header_of())
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_creation_that_was_interrupted_is_taken_up(tmp_path):
    """A header or an empty log without a first record is not yet a store, and is no obstacle to making one."""
    store = Store.create(tmp_path / "a", header_of())
    (store.place.local / "_log" / "0000000000.json").unlink()
    with pytest.raises(StoreError, match="its log is empty"):
        Store(store.place.local)
    assert Store.create(store.place.local, header_of()).head().sequence == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_read_only_store_is_read_but_not_written(store):
    """Reading needs no permission to write; writing without it is a StoreError."""
    moments = add(store)
    folders = [store.place.local, *(p for p in store.place.local.rglob("*") if p.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        assert Store(store.place.local).moments() == moments
        with pytest.raises(StoreError, match="a writable store"):
            add(store)
    finally:
        for folder in folders:
            folder.chmod(0o755)


# Sums


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("targets", [Dense(K), OneHot(K)], ids=["dense", "one_hot"])
@pytest.mark.parametrize("scale", [1.0, 2.0**25], ids=["usual", "coarse"])
def test_committed_moments_are_read_bit_for_bit(tmp_path, precision, targets, scale):
    """Every limb is kept, also the coarse one of sums that outgrew their first grid."""
    store = Store.create(tmp_path / "s", header_of(precision, targets))
    moments = moments_of(store.header, scale=scale)
    assert (moments.gram.top == COARSE) == (scale > 1)
    segment = store.write_segment(moments, [shard_of(0), shard_of(3)], [20, 30])
    assert store.moments() == Moments.zeros(store.header.frame, targets, precision)
    store.commit([segment])
    again = Store(store.place.local)
    assert again.read(segment) == moments
    assert again.moments() == moments
    assert [(s.key, s.planned_rows) for s in again.counted().values()] == [("k0", 20), ("k3", 30)]
    assert (segment.n_shards, segment.n_rows, segment.source) == (2, 50, "s")


def test_sums_of_folds_and_tallies_add_up(store):
    """Segments sum by fold to the whole; tables of counts come back as they were written, empty ones too."""
    tally = {
        "pairs": (np.array([[0, 3], [1, 2]], np.int32), np.array([4, 1])),
        "none": (np.zeros((0, 2), np.int32), np.zeros(0, np.int64)),
    }
    total = Moments.zeros(store.header.frame, store.header.targets)
    for number in range(7):
        total = total + add(store, number=number, seed=number, tally=tally)
    folds = store.fold_moments()
    assert sorted(folds) == [0, 1, 2]
    assert sum(folds.values(), start=Moments.zeros(store.header.frame, store.header.targets)) == store.moments()
    assert store.moments() == total
    assert folds[1] == store.moments(lambda segment: segment.fold == 1)
    for tables in store.tables():
        assert sorted(tables) == sorted(tally)
        for name, table in tally.items():
            for there, written in zip(tables[name], table, strict=True):
                np.testing.assert_array_equal(there, written)
                assert there.dtype == written.dtype


# Commits


def test_shard_counts_once(store):
    """A content that is counted, or given twice, is refused under any name, and nothing changes."""
    add(store, number=4)
    moments = moments_of(store.header)
    again = store.write_segment(moments, [shard_of(4, "elsewhere")], [50])
    new = [store.write_segment(moments, [shard_of(n)], [50]) for n in (5, 5)]
    for segments in ([again], new):
        with pytest.raises(MismatchError, match=r"k\d is counted already, as k\d"):
            store.commit(segments)
    assert (store.head().sequence, len(store.head().segments)) == (1, 1)


def test_refusals_are_recorded_once(store):
    """A shard that was skipped stays on record, with its reason, through later commits."""
    refusal = Refusal("k9", "9" * 64, "not JSON")
    for _ in range(2):
        store.commit(refused=[refusal])
    add(store)
    assert store.head().refused == (refusal,)
    assert [r.action for r in store.records()] == ["create", "add", "add", "add"]


@pytest.mark.parametrize("same", [False, True], ids=["different shards", "the same shards"])
def test_racing_coordinators_lose_and_double_nothing(store, same):
    """Of racing commits every different shard lands, and of a shard that several add exactly one lands."""
    n_coordinators, n_commits = 4, 13
    moments = moments_of(store.header)

    def coordinate(which):
        mine, landed = Store(store.place.local), 0
        for i in range(n_commits):
            shard = shard_of(i if same else which * n_commits + i)
            segment = mine.write_segment(moments, [shard], [50])
            try:
                mine.commit([segment])
                landed += 1
            except MismatchError:
                assert same
        return landed

    with ThreadPoolExecutor(n_coordinators) as pool:
        landed = sum(pool.map(coordinate, range(n_coordinators)))
    expected = n_commits * (1 if same else n_coordinators)
    records = Store(store.place.local).records()
    assert landed == len(store.head().segments) == len(store.counted()) == len(records) - 1 == expected
    assert store.moments() == sum([moments] * expected, start=Moments.zeros(moments.frame, store.header.targets))


# Damage


def edit(path):
    path.write_text(
        path.read_text()
        .replace('"n_rows": 50', '"n_rows": 51')
        .replace('"create"', '"made"')
        .replace('"n_folds": 3', '"n_folds": 2')
    )


def rename(path):
    path.write_text(path.read_text().replace('"targets"', '"target"'))


def replace(path):
    shutil.copy(path.with_name("0000000001.json"), path)


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        *((damage, f"_log/000000000{n}.json") for damage in (truncate, edit, flip) for n in (0, 2, 3)),
        *((Path.unlink, f"_log/000000000{n}.json") for n in (0, 2)),
        (replace, "_log/0000000003.json"),
        *((damage, "segments/*/gram/c/0/0/0") for damage in (Path.unlink, flip, truncate)),
        *((damage, "segments/*/weight/c/0") for damage in (Path.unlink, flip, truncate)),
        (Path.unlink, "segments/*/sum_x_fine/zarr.json"),
        (Path.unlink, "segments/*/zarr.json"),
        *((damage, "ledgers/*.parquet") for damage in (Path.unlink, flip, truncate)),
        *((damage, "header/*/frame/exponents/c/0") for damage in (Path.unlink, flip)),
        *((damage, "header/*/zarr.json") for damage in (edit, rename)),
    ],
    ids=lambda p: p if isinstance(p, str) else p.__name__,
)  # fmt: skip
def test_damage_is_an_error_and_never_wrong_numbers(store, damage, pattern):
    """Whatever is truncated, altered or deleted, using the store ends in one StoreError that names the place."""
    for seed in range(3):
        add(store, seed=seed)
    path = sorted(store.place.local.glob(pattern))[0]
    before = path.read_bytes()
    damage(path)
    assert not path.exists() or path.read_bytes() != before
    with pytest.raises(StoreError) as caught:
        use(store.place.local)
    assert "\n" not in str(caught.value)


def use(path):
    """Everything that a fit reads of a store."""
    store = Store(path)
    return store.records(), store.counted(), store.fold_moments(), store.moments()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_no_flipped_byte_anywhere_changes_a_number(store, seed):
    """Any byte of any file: either a StoreError, or the same sums and ledger as before."""
    add(store, tally={"ids": (np.arange(5)[:, None], np.ones(5, np.int64))})
    _, counted, _, moments = use(store.place.local)
    rng = np.random.default_rng(seed)
    files = sorted(p for p in store.place.local.rglob("*") if p.is_file())
    for _ in range(300):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(data))
        try:
            _, counted_now, _, moments_now = use(store.place.local)
        except StoreError:
            pass
        else:
            assert (counted_now, moments_now) == (counted, moments), path
        path.write_bytes(whole)
