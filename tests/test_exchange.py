"""Segments that leave and come: files carry every bit, a merge equals one store that counted all, none counts twice."""

import json
import zipfile
from functools import partial

import numpy as np
import pytest
import zarr
from store_helpers import (
    TALLY,
    D,
    K,
    add,
    everything,
    header_of,
    leave_to_the_disk,
    moments_of,
    moved,
    new_store,
    shard_of,
    write,
)
from zarr.storage import ZipStore

from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.exact import COARSE
from streamfit.store import (
    Departure,
    Refusal,
    Removal,
    Store,
    absorb,
    collect,
    digest_of,
    export_segments,
    import_segments,
    merge,
    verify,
)
from streamfit.targets import OneHot


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def new(tmp_path):
    """Makes stores under a name."""
    return partial(new_store, tmp_path)


def forget(store, number):
    """Take a shard out for good, if its segment holds no other."""
    content = shard_of(number).content_id
    old = store.holder(content)
    removal = store.write_removal([Departure(content, f"k{number}", 50, True)])
    store.commit(drop=[old.id], removals=[Removal(*removal, "forgotten", 0, "as Ms. Doe asked", 1, 50, (old.id,))])


# Files of segments


def test_file_of_segments_carries_every_bit(tmp_path, new):
    """Sums, tables, shards, labels, refusals and what is forgotten come out as they went in, into any store."""
    header = header_of(n_folds=2, files={"tokenizer": b"{}"})
    here = new("here", header, range(5), tally=TALLY, labels=(("time", "2026"),))
    add(here, number=5, seed=5, source="other", without=(3,))
    forget(here, 0)
    here.commit(refused=[Refusal("k9", "9" * 64, "not JSON")])
    path = tmp_path / "f.zip"
    assert export_segments(here, path) == 250
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.zip", "here"]
    there, record = import_segments(path, tmp_path / "there")
    assert everything(there) == everything(here)
    assert there.counted() == here.counted()
    assert there.fold_moments() == here.fold_moments()
    assert there.head().refused == here.head().refused
    assert there.forgotten().keys() == here.forgotten().keys() == {shard_of(0).content_id}
    assert {s.kind for s in record.segments} == {s.kind for s in here.head().segments}
    (left,) = there.head().removed
    assert (left.why, left.sequence) == ("as Ms. Doe asked", 1)
    assert there.departures(left) == here.departures(here.head().removed[0])
    assert verify(there).faults == []
    with pytest.raises(MismatchError, match="k0, or a part of it, was forgotten"):
        there.commit([write(there, shard_of(0))])
    more = new("more", header, range(6, 8))
    import_segments(path, tmp_path / "more")
    assert more.moments() == here.moments() + moments_of(header, 6) + moments_of(header, 7)


def test_store_that_forgot_everything_tells_others(tmp_path, new):
    """A file without segments still carries what must not be counted."""
    here = new("here", None, [0])
    forget(here, 0)
    assert export_segments(here, tmp_path / "f.zip") == 0
    there, _ = import_segments(tmp_path / "f.zip", tmp_path / "there")
    assert there.forgotten().keys() == {shard_of(0).content_id}


def test_file_of_segments_is_a_store_that_zarr_reads_in_place(tmp_path, new):
    """The members of the file are a store's objects: the log names segments, and Zarr's own ZipStore opens them."""
    store = new("s", None, range(3))
    export_segments(store, tmp_path / "f.zip")
    with zipfile.ZipFile(tmp_path / "f.zip") as file:
        assert {item.compress_type for item in file.infolist()} == {zipfile.ZIP_STORED}
        log = sorted(name for name in file.namelist() if name.startswith("_log/"))
        body = json.loads(file.read(log[-1]))["body"]
    (segment,) = body["segments"]
    reader = ZipStore(tmp_path / "f.zip", mode="r")
    try:
        group = zarr.open_group(reader, path=f"segments/{segment['id']}", mode="r")
        names = [name for name in ("gram_coarse", "gram", "gram_fine") if name in group]
        gram = sum(group[name][0] for name in names)
    finally:
        reader.close()
    assert (np.triu(gram) == np.triu(store.moments().gram.value()[0])).all()
    assert group.attrs["n_rows"] == 150


def test_header_alone_makes_an_empty_store(tmp_path, new):
    """`empty` carries what another site needs to count alike, and no segment; imported twice it changes nothing."""
    here = new("here", header_of(reader={"columns": ["a"]}, files={"t": b"x"}), range(2))
    assert export_segments(here, tmp_path / "h.zip", empty=True) == 0
    for _ in range(2):
        there, record = import_segments(tmp_path / "h.zip", tmp_path / "there")
        assert (record.sequence, there.counted()) == (0, {})
    assert there.header.content_hash == here.header.content_hash
    add(there, number=7, seed=7)
    assert absorb(here, there, "import").n_rows == 150
    assert here.moments() == sum((moments_of(here.header, i) for i in (0, 1, 7)), start=here.zeros())


def test_anonymous_file_names_nothing(tmp_path, new):
    """No path, key or reason of the site is anywhere in the file; what is in both stores is still found out."""
    here = new("here", None, [1], uri="/home/jane/secret.parquet", key="secret.parquet")
    add(here, number=2, key="private.txt", uri="/private.txt")
    forget(here, 2)
    here.commit(refused=[Refusal("hidden.json", "9" * 64, "/home/jane/hidden.json is not JSON")])
    export_segments(here, tmp_path / "f.zip", anonymous=True)
    export_segments(here, tmp_path / "open.zip")
    words = ("secret", "private", "hidden", "jane", "Doe")
    there, _ = import_segments(tmp_path / "f.zip", tmp_path / "there")
    known, _ = import_segments(tmp_path / "open.zip", tmp_path / "known")

    def said(store):
        names = [(s.key, s.uri) for s in store.counted().values()] + [*store.head().refused, *store.head().removed]
        return repr(names + [store.departures(r) for r in store.head().removed])

    assert all(word in said(known) for word in words if word != "private")
    assert not any(word in said(there) for word in words)
    with zipfile.ZipFile(tmp_path / "f.zip") as file:
        data = b"".join(file.read(name) for name in file.namelist())
    assert not any(word.encode() in data for word in words)
    assert there.moments() == here.moments()
    assert there.counted().keys() == here.counted().keys()
    assert there.forgotten().keys() == here.forgotten().keys()
    with pytest.raises(MismatchError, match=r"1 shards .*: [0-9a-f]{16} is secret\.parquet"):
        import_segments(tmp_path / "f.zip", here.place.local)


def test_file_of_a_past_commit(tmp_path, new):
    """A store opened at a commit gives that commit's segments."""
    store = new("s", None, range(3))
    export_segments(Store(store.place.local, at=2), tmp_path / "f.zip")
    there, _ = import_segments(tmp_path / "f.zip", tmp_path / "there")
    assert there.moments() == Store(store.place.local, at=2).moments()
    assert len(there.counted()) == 2


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def cut_in_half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[data.index(b"segments/") + 2000] ^= 1
    path.write_bytes(bytes(data))


def rubbish(path):
    path.write_bytes(b"\x00" * 999)


def another_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "hello")


def without_log(path):
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist() if not name.startswith("_log")}
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)


def test_damaged_file_is_an_error_and_changes_nothing(tmp_path, new):
    """One ConfigError of one line that names the file; no store is made, and one that is there stays as it was."""
    path = tmp_path / "f.zip"
    export_segments(new("s", None, range(2)), path)
    whole, here = path.read_bytes(), new("here", None, [5])
    for damage in (truncate, cut_in_half, flip, rubbish, another_zip, without_log):
        path.write_bytes(whole)
        damage(path)
        for where in ("here", "new"):
            with pytest.raises(ConfigError, match=r"f\.zip: .*expected a file that `streamfit export") as caught:
                import_segments(path, tmp_path / where)
            assert "\n" not in str(caught.value)
            assert not Store.exists(tmp_path / "new")
    assert here.head().sequence == 1
    with pytest.raises(ConfigError, match=r"none\.zip"):
        import_segments(tmp_path / "none.zip", tmp_path / "new")


@pytest.mark.parametrize("name", ["taken.zip", "segments.tar"])
def test_segments_are_written_to_a_new_zip(tmp_path, new, name):
    """What is there stays, and nothing is left behind by a refusal."""
    (tmp_path / "taken.zip").write_text("mine")
    store = new("s", None, [0])
    with pytest.raises(ConfigError, match=r"expected a new \.zip"):
        export_segments(store, tmp_path / name)
    assert (tmp_path / "taken.zip").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "taken.zip"]


# Merging


def test_merge_equals_one_store_that_counted_all(tmp_path, new):
    """Sums, tables, folds and digest are those of a store that counted everything itself, whatever the segmentation."""
    header = header_of(n_folds=2)
    all_, a, b, c = (new(name, header) for name in "xabc")
    for number in range(9):
        for store in (all_, (a, b, c)[number % 3]):
            add(store, number=number, seed=number, tally=TALLY, source="uv"[number % 2])
    merged = merge([a, b, c], tmp_path / "m")
    assert everything(merged) == everything(all_)
    assert merged.counted() == all_.counted()
    assert merged.fold_moments() == all_.fold_moments()
    assert verify(merged).digest == verify(all_).digest == digest_of(all_.moments())
    assert len(merged.records()) == 2
    kinds = {segment.kind for segment in all_.head().segments}
    assert len(merged.head().segments) == len(kinds)
    assert everything(a) == everything(Store(a.place.local))


def test_merge_of_forgetful_stores(tmp_path, new):
    """What one was made to forget stays forgotten in the merge, unless the other still counts it: then none is made."""
    a, b = new("a", None, [0, 1]), new("b", None, [2])
    forget(a, 0)
    merged = merge([a, b], tmp_path / "m")
    assert merged.forgotten().keys() == {shard_of(0).content_id}
    assert merged.moments() == moments_of(a.header, 1) + moments_of(a.header, 2)
    add(b, number=0)
    for stores in ([a, b], [b, a]):
        with pytest.raises(MismatchError, match=r"k0, which .*/a was made to forget"):
            merge(stores, tmp_path / "m2")
    assert not (tmp_path / "m2").exists()


def test_heavy_tailed_sums_merge_into_those_that_fit(tmp_path, new):
    """A store whose sums outgrew the first grid merges with one whose sums did not, bit for bit."""
    header = header_of("float32", n_folds=1)
    a, b = new("a", header, [0]), new("b", header)
    large = moments_of(header, 5, scale=2.0**25)
    assert large.gram.top == COARSE
    b.commit([b.write_segment(large, [shard_of(5)], [50])])
    merged = merge([a, b], tmp_path / "m")
    assert merged.moments() == moments_of(header, 0) + large


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"n_features": D + 1}, "features, tile, frame/exponents, frame/origin"),
        ({"targets": OneHot(K)}, "targets, frame/y_exponents"),
        ({"precision": "float32"}, "precision"),
        ({"n_folds": 2}, "n_folds"),
    ],
)
def test_stores_of_other_sums_do_not_merge(tmp_path, new, changes, differing):
    """Different features, targets, precision or folds are named, in merge, import and absorption alike."""
    a, b = new("a", None, [0]), new("b", header_of(**({"n_folds": 1} | changes)))
    export_segments(b, tmp_path / "b.zip")
    pattern = f"made with other {differing}"
    for act in (
        lambda: merge([a, b], tmp_path / "m"),
        lambda: absorb(a, b, "x"),
        lambda: import_segments(tmp_path / "b.zip", a.place.local),
    ):
        with pytest.raises(MismatchError, match=pattern):
            act()
    assert not (tmp_path / "m").exists()
    assert a.head().sequence == 1


def test_stores_with_another_origin_do_not_merge(tmp_path, new):
    """A site that made its own header from its own sample has another frame, and its sums do not add."""
    header = header_of(n_folds=1)
    other = moved(header, origin=header.frame.origin + 1)
    with pytest.raises(MismatchError, match="made with other frame/origin; expected the same header"):
        merge([new("a", header), new("b", other)], tmp_path / "m")


def test_stores_that_share_content_do_not_merge(tmp_path, new):
    """Overlaps are named by both names, a store does not merge with itself, and no store is made."""
    a, b = new("a", None, range(8)), new("b", None, [9])
    for number in range(1, 8):
        add(b, number=number, key=f"other{number}")
    with pytest.raises(MismatchError, match=r"7 shards that .*/b and .*/a both counted: other1 is k1; .* and 2 more"):
        merge([a, b], tmp_path / "m")
    with pytest.raises(MismatchError, match="8 shards"):
        merge([a, a], tmp_path / "m")
    with pytest.raises(MismatchError, match="7 shards"):
        absorb(a, b, "x")
    assert not (tmp_path / "m").exists()
    assert (a.head().sequence, b.head().sequence) == (8, 8)


def test_stores_that_divided_one_file_differently_do_not_merge(tmp_path, new):
    """Parts of the same bytes under different label columns may share rows, so they are an overlap."""
    file = shard_of(7).content_id
    a, b = new("a"), new("b")
    a.commit([write(a, shard_of(1, select=(("lang", "de"),), within=file))])
    b.commit([write(b, shard_of(2, select=(("site", "x"),), within=file))])
    with pytest.raises(MismatchError, match=r"k2 of .*/b and k1 of .*/a: the same bytes, divided otherwise"):
        merge([a, b], tmp_path / "m")
    assert not (tmp_path / "m").exists()
    c = new("c")
    c.commit([write(c, shard_of(3, select=(("lang", "en"),), within=file))])
    assert len(merge([a, c], tmp_path / "m").counted()) == 2


def test_merge_takes_no_place_of_another_store(tmp_path, new):
    """A store that counted, or another thing, is not written into; one that a killed merge left empty is."""
    a, b = new("a", None, [0]), new("b", None, [1])
    full = new("full", None, [2])
    with pytest.raises(ConfigError, match=r"a store at .*full; expected nothing there yet"):
        merge([a, b], full.place.local)
    assert full.head().sequence == 1
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"holds thesis\.tex"):
        merge([a, b], tmp_path / "papers")
    chunk = next((b.place.local / "segments").glob("*/gram/c/0/0/0"))
    data = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(StoreError, match="is missing"):
        merge([a, b], tmp_path / "m")
    assert Store(tmp_path / "m").head().n_rows == 0  # all or nothing
    chunk.write_bytes(data)
    merged = merge([a, b], tmp_path / "m")
    assert merged.moments() == a.moments() + b.moments()
    collect(merged, grace=0)
    assert verify(merged).faults == []
