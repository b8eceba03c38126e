"""What one commit may hold: swaps, parts of files, forgotten content; what it must not leaves the store as it was."""

import pytest
from store_helpers import add, header_of, leave_to_the_disk, moments_of, shard_of, write

from streamfit.errors import MismatchError
from streamfit.store import Departure, Refusal, Removal, Store, compact


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def store(tmp_path):
    return Store.create(tmp_path / "store", header_of("float32", n_features=2, n_folds=1))


def test_swap_is_one_commit(store):
    """Segments leave and come in one record; what leaves may come back in the same commit, in another segment."""
    add(store, number=1, seed=1)
    kept = add(store, number=2, seed=2)
    old = store.holder(shard_of(1).content_id)
    new = store.write_segment(moments_of(store.header, 9), [shard_of(1, without=(3,)), shard_of(5)], [20, 30])
    removal = store.write_removal([Departure(shard_of(1).content_id, "k1", 1, False, (3,))])
    record = store.commit(
        [new], drop=[old.id], removals=[Removal(*removal, "forgotten", 0, "asked for", 1, 1, (old.id,))]
    )
    assert record.sequence == 3
    assert store.moments() == moments_of(store.header, 9) + kept
    assert store.counted()[shard_of(1).content_id].without == (3,)
    (noted,) = store.head().removed
    assert (noted.sequence, store.departures(noted)[0].positions) == (3, (3,))
    assert not store.forgotten()  # a part of it left, the rest is counted


@pytest.mark.parametrize("ids", [["0" * 32], None], ids=["unknown", "dropped before"])
def test_only_live_segments_are_dropped(store, ids):
    """Dropping what is not live, or no longer, is a mismatch that names it; whatever comes with it is not counted."""
    add(store)
    if ids is None:
        ids = [segment.id for segment in store.head().segments]
        store.commit(drop=ids)
    head = store.head()
    with pytest.raises(MismatchError, match=f"segments {ids[0]} are no longer live"):
        store.commit([write(store, shard_of(9))], drop=ids)
    assert store.head() == head


def test_parts_of_one_file_are_divided_one_way(store):
    """Sub-shards under different label columns may share rows, so only one division of the same bytes counts."""
    file = shard_of(7).content_id
    by_lang = [shard_of(n, select=(("lang", v),), within=file) for n, v in ((1, "de"), (2, "en"))]
    by_site = shard_of(3, select=(("site", "x"),), within=file)
    for new in ([by_lang[0], by_site], [by_lang[0], shard_of(7)]):
        with pytest.raises(MismatchError, match=r"divided by other columns \(lang and (site|nothing)\)") as caught:
            store.commit([write(store, shard) for shard in new])
        assert type(caught.value) is MismatchError  # no race that counting again could win
    store.commit([write(store, by_lang[0])])
    for wrong in (by_site, shard_of(7)):
        with pytest.raises(MismatchError, match="divided by other columns"):
            store.commit([write(store, wrong)])
    store.commit([write(store, by_lang[1])])
    lang = [segment.id for segment in store.head().segments]
    with pytest.raises(MismatchError, match="divided by other columns"):
        store.commit([write(store, by_site)], drop=lang[:1])
    store.commit([write(store, by_site)], drop=lang)
    assert [shard.key for shard in store.counted().values()] == ["k3"]


def test_forgotten_content_stays_out_until_it_is_asked_for(store):
    """Also a part of forgotten bytes is refused; `recount` brings the content back, and it is not forgotten then."""
    add(store, number=1, seed=1)
    (old,) = store.head().segments
    removal = store.write_removal([Departure(shard_of(1).content_id, "k1", 50, True)])
    store.commit(drop=[old.id], removals=[Removal(*removal, "forgotten", 0, "", 1, 50, (old.id,))])
    assert [r.sequence for r in store.forgotten().values()] == [2]
    again = write(store, shard_of(1, uri="/elsewhere"), seed=1)
    with pytest.raises(MismatchError, match="k1, or a part of it, was forgotten by commit 2"):
        store.commit([again])
    part = shard_of(2, select=(("lang", "de"),), within=shard_of(1).content_id)
    with pytest.raises(MismatchError, match="k2, or a part of it, was forgotten by commit 2"):
        store.commit([write(store, part)])
    assert not store.counted()
    store.commit([again], recount=True)
    assert not store.forgotten()
    assert store.moments() == moments_of(store.header, 1)
    assert compact(store) == 0


def test_forgotten_part_does_not_come_back_in_another_division(store):
    """Neither the whole file nor a part by other columns may bring rows back that left with a part of it."""
    file = shard_of(7).content_id
    german, english = (shard_of(n, select=(("lang", v),), within=file) for n, v in ((1, "de"), (2, "en")))
    store.commit([write(store, german)])
    (old,) = store.head().segments
    removal = store.write_removal([Departure(german.content_id, "k1", 50, True, bytes_id=file, columns="lang")])
    store.commit(drop=[old.id], removals=[Removal(*removal, "forgotten", 0, "", 1, 50, (old.id,))])
    for wrong in (shard_of(7), shard_of(3, select=(("site", "x"),), within=file)):
        with pytest.raises(MismatchError, match=f"{wrong.key}, or a part of it, was forgotten by commit 2"):
            store.commit([write(store, wrong)])
    store.commit([write(store, english)])
    assert [shard.key for shard in store.counted().values()] == ["k2"]


def test_refusals_of_one_commit_are_recorded_once(store):
    """A broken content under two paths is one refusal."""
    store.commit(refused=[Refusal(key, "9" * 64, "not JSON") for key in ("x", "y")])
    assert len(store.head().refused) == 1
