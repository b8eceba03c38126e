"""A store in a bucket is the store in a folder, bit for bit: on S3 (moto's server); conditional puts, races, faults.

Addresses of Google Cloud Storage and Azure are only parsed here: nothing has been run against a server of theirs.
"""

import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import obstore
import pytest
from chaos import racer
from chaos.harness import (
    STREAMFIT,
    Process,
    Truth,
    assert_one_clear_error,
    run_command,
    run_race,
    until,
    write_corpus,
    write_problem,
)
from obstore.exceptions import AlreadyExistsError
from obstore.store import AzureStore, GCSStore, S3Store

from streamfit.errors import StoreError
from streamfit.store import (
    Place,
    Refusal,
    Store,
    collect,
    compact,
    export_dense,
    export_segments,
    import_segments,
    merge,
    verify,
)


@pytest.fixture(params=["folder", "bucket"])
def fresh(request, tmp_path):
    """Gives new places for stores: folders, or prefixes of a bucket."""
    if request.param == "folder":
        return lambda: str(tmp_path / f"store-{len(list(tmp_path.iterdir()))}" / "store")
    return request.getfixturevalue("s3")


def contents(store):
    """All that a store says of itself, but for random names and times."""
    head, found = store.head(), verify(store)
    segments = [(s.kind, s.n_rows, [shard.key for shard in store.ledger(s)]) for s in head.segments]
    removed = [(r.kind, r.sequence, r.why, store.departures(r)) for r in head.removed]
    facts = {name: getattr(head, name) for name in ("sequence", "pins", "refused", "max_live", "keep", "horizon")}
    return facts, segments, removed, store.counted(), found.checked, found.faults, found.digest


def life(fresh, folder):
    """What a store is after each thing that can happen to one."""
    where = fresh()
    store = Store.create(where, racer.HEADER, max_live=6, keep=2)
    for number in range(4):
        racer.add(store, number)
    store.write_segment(racer.moments_of(9), [racer.shard_of(9)], [racer.ROWS])  # never committed
    store.pin("early")
    store.commit(refused=[Refusal("bad", "0" * 64, "not a row")])
    racer.forget(store, 2, fast=True)
    seen = [contents(store), [r.action for r in store.records()], store.fold_moments()]
    seen += [compact(store), compact(store, 5), contents(store)]
    store.amend("expire", lambda head: {"horizon": head.sequence})
    seen += [collect(store, grace=0.0), contents(Store(where, "early"))]
    with pytest.raises(StoreError, match="no longer kept"):
        Store(where, 2)
    store.unpin("early")
    seen += [collect(store, grace=0.0), collect(store, grace=0.0)]
    folder.mkdir()
    export_dense(store, folder / "sums.npz")
    with np.load(folder / "sums.npz") as sums:
        seen.append({name: sums[name].tobytes() for name in sums.files})
    export_segments(store, folder / "segments.zip")
    imported, record = import_segments(folder / "segments.zip", fresh())
    seen += [record.n_rows, contents(imported)]
    other = Store.create(fresh(), racer.HEADER)
    racer.add(other, 7)
    merged = merge([imported, other], fresh())
    return [*seen, contents(merged), merged.moments()]


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory):
    """What a life in folders looks like."""
    folder = tmp_path_factory.mktemp("folder")
    return life(lambda: str(folder / str(len(list(folder.iterdir())))), folder / "files")


def test_store_in_a_bucket_lives_as_one_in_a_folder(s3, tmp_path, in_a_folder):
    """Commits, ledgers, pins, removals, merges, collections, exports, imports: every answer and every bit is equal."""
    in_a_bucket = life(s3, tmp_path / "files")
    for step, (there, here) in enumerate(zip(in_a_bucket, in_a_folder, strict=True)):
        assert there == here, step


def test_name_that_is_taken_is_refused_and_kept(fresh):
    """The one guarantee that a commit needs of a place."""
    place = Place(fresh())
    place.make()
    place.put_new("_log/1.json", b"first")
    with pytest.raises(AlreadyExistsError):
        place.put_new("_log/1.json", b"second")
    assert place.get("_log/1.json") == b"first"
    assert [(name, size) for name, size, _ in place.list("_log/")] == [("_log/1.json", 5)]
    assert place.list("_log/", after="_log/1.json") == []
    assert (place.get("_log/2.json"), place.exists("_log/2.json"), place.exists("_log/1.json")) == (None, False, True)
    place.delete(["_log/1.json", "_log/2.json"])
    place.delete_tree("_log")
    assert place.list("_log/") == []


def test_racing_threads_lose_and_double_no_commit(fresh):
    """Two coordinators, 44 commits: each that was acknowledged is in the log under a number of its own."""
    url, n_commits = fresh(), 22
    Store.create(url, racer.HEADER)

    def coordinate(which):
        mine = Store(url)
        done = []
        for i in range(n_commits):
            number = 100 * which + i
            if i % 6:
                record = mine.commit(refused=[Refusal(str(number), f"{number:064d}", "to be brief")])
            else:
                record = racer.add(mine, number)
            done.append((record.sequence, record.commit))
        return done

    with ThreadPoolExecutor(2) as pool:
        done = [each for mine in pool.map(coordinate, range(2)) for each in mine]
    store = Store(url)
    assert sorted(done) == [(record.sequence, record.commit) for record in store.records()[1:]]
    assert len(done) == 2 * n_commits
    assert len(store.head().refused) + len(store.counted()) == 2 * n_commits
    assert store.moments() == sum((racer.moments_of(int(s.key)) for s in store.counted().values()), start=store.zeros())


def test_racing_processes_lose_and_double_no_commit(s3, tmp_path):
    """The same of two processes, which forget and compact as well."""
    url = s3()
    Store.create(url, racer.HEADER, max_live=6, keep=4)
    notes = run_race(tmp_path, url, n_racers=2, n_commits=20, light=0.7)
    figures = racer.assert_nothing_lost(url, notes)
    assert figures["acknowledged"] == 40 <= figures["commits"]


@pytest.mark.slow
def test_killed_fit_into_a_bucket_is_resumed_to_the_same_bits(s3, tmp_path, serial, quiet):
    """A run on two workers whose client is killed once ends with the sums and weights of a run in a folder."""
    for name in ("corpus", "truth", "run"):
        (tmp_path / name).mkdir()
    truth = Truth(tmp_path / "truth", write_corpus(tmp_path / "corpus", 8), serial, quiet)
    url, folder = s3(), tmp_path / "run"
    problem = write_problem(folder, tmp_path / "corpus", at=url)
    machine = folder / "machine.toml"
    machine.write_text("n_workers = 2\nthreads_per_worker = 1\n")
    killed = Process(folder / "killed.txt", STREAMFIT, "fit", problem, "--machine", machine)
    first_commit = Place(url + "/_log")
    until(lambda: killed.code is not None or first_commit.exists("0000000001.json"), pause=0.3)
    assert killed.code is None, killed.text()
    killed.kill(alone=True)
    assert not (folder / "run" / "store").exists()
    assert 0 < Store(url).head().n_rows < truth.moments.n_rows
    code, text = run_command(folder, "resume", folder / "run")
    assert (code, "counted already" in text) == (0, True), text
    truth.assert_reached(folder / "run", url)
    code, text = run_command(folder, "status", url, "--json")
    assert (code, f'"rows": {truth.moments.n_rows},' in text) == (0, True), text


# Faults


@pytest.fixture
def bucket(s3):
    """A store of two segments in a bucket."""
    store = Store.create(s3(), racer.HEADER)
    for number in range(2):
        racer.add(store, number)
    return store


def moto(path, data, method="POST"):
    """Speak to the server itself."""
    request = urllib.request.Request(os.environ["AWS_ENDPOINT_URL"] + path, data, {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()


@pytest.fixture
def strict_server(s3):
    """The server asks for credentials, and knows none."""
    moto("/moto-api/reset-auth", b"0")
    yield
    moto("/moto-api/reset-auth", b"inf")


def assert_cannot_be_read(url, pattern):
    with pytest.raises(StoreError, match=pattern) as caught:
        Store(url)
    assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=pattern):
        Store.create(url, racer.HEADER)


def test_wrong_credentials_are_one_error(bucket, strict_server):
    assert_cannot_be_read(bucket.url, r"cannot read _log/.*403 Forbidden.*InvalidAccessKeyId.*credentials")


def test_missing_bucket_is_one_error(s3):
    assert_cannot_be_read("s3://elsewhere/store", r"cannot read _log/.*404 Not Found.*NoSuchBucket")


def test_unreachable_endpoint_is_one_error(bucket, monkeypatch, tmp_path):
    """After some tries; a commit that cannot be written is not taken for one that was, and the store is as before."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_cannot_be_read(bucket.url, r"cannot read _log/.*after 6 retries.*network")
    error = assert_one_clear_error(*run_command(tmp_path, "status", bucket.url))
    assert "127.0.0.1:9" in error


@pytest.mark.parametrize("damage", ["deleted", "flipped"])
def test_damaged_chunk_in_a_bucket_is_an_error(bucket, damage):
    """A chunk that is gone, or has another bit, is never read as numbers."""
    key = f"segments/{bucket.head().segments[0].id}/gram/c/0/0/0"
    data = bytearray(bucket.place.get(key))
    obstore.delete(bucket.place.objects, key)
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        obstore.put(bucket.place.objects, key, bytes(data))
    with pytest.raises(StoreError, match="missing" if damage == "deleted" else "cannot read") as caught:
        Store(bucket.url).moments()
    assert "\n" not in str(caught.value)
    assert len(verify(Store(bucket.url)).faults) == 1


# Addresses


@pytest.mark.parametrize(
    ("url", "kind"), [("s3://b/a/b/", S3Store), ("gs://b/a/b", GCSStore), ("az://b/a/b", AzureStore)]
)
def test_addresses_of_every_vendor_are_understood(monkeypatch, url, kind):
    """Credentials come from the environment under the vendor's names; nothing is sent before something is asked for."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    place = Place(url)
    assert isinstance(place.objects, kind)
    assert (place.objects.prefix, place.local, place.url) == ("a/b", None, url.rstrip("/"))
    assert "account" in str(place.objects) or kind is not AzureStore


@pytest.mark.parametrize("url", ["s3://", "http://host/store", "ftp://host/store", "gs:///"])
def test_other_addresses_are_refused_with_those_that_are_known(url):
    with pytest.raises(StoreError, match="s3://bucket/prefix, gs://bucket/prefix, az://bucket/prefix"):
        Place(url)


def test_azure_without_an_account_is_one_error(monkeypatch):
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match=r"Account must be specified.*environment variables"):
        Place("az://container/prefix")
