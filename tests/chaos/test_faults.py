"""A disk that is full, a store that may not be written, damage, clocks that are wrong: the right sums or one error."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chaos import racer
from chaos.harness import (
    STREAMFIT,
    Process,
    Truth,
    Witness,
    assert_one_clear_error,
    run_command,
    until,
    write_corpus,
    write_problem,
)

from streamfit.cli import main
from streamfit.errors import StoreError
from streamfit.store import Collected, Place, Store, collect, compact, purge, verify

N_SHARDS = 24
LIMITED = "import resource, os, sys; {what}; os.execv(sys.argv[1], sys.argv[1:])"
"""A process that gives something up and then becomes another."""
FILES_OF = "resource.setrlimit(resource.RLIMIT_FSIZE, ({n}, {n}))"
NO_OVERRIDE = "import ctypes; ctypes.CDLL(None).prctl(24, 1)"
"""Root keeps to permissions as anyone else once it has dropped CAP_DAC_OVERRIDE from what it may get back."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), N_SHARDS)


@pytest.fixture(scope="module")
def truth(tmp_path_factory, corpus, serial, quiet):
    return Truth(tmp_path_factory.mktemp("truth"), corpus, serial, quiet)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of so many bytes, where that is allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size, *options):
        option = ",".join([f"size={size}", *options])
        command = ["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            # Only a file system of its own can be made full or read-only, and mounting one takes rights that few have.
            pytest.skip("mounting is not allowed here")
        return folder

    yield mount
    while subprocess.run(["umount", folder], capture_output=True).returncode == 0:
        continue


def fit_within(what, folder, problem):
    """`streamfit fit` in one process that has given something up."""
    machine = folder / "machine.toml"
    machine.write_text('kind = "serial"\n')
    output = folder / f"fit-{time.monotonic_ns()}.txt"
    command = (sys.executable, "-c", LIMITED.format(what=what), STREAMFIT, "fit", problem, "--machine", machine)
    process = Process(output, *command)
    return process.wait(), process.text()


def assert_goes_on(folder, witness, truth, where):
    """With the cause gone, `resume` ends the run; all that was committed before is still there."""
    code, text = run_command(folder, "resume", folder / "run")
    assert code == 0, text
    assert witness.lost() == []
    truth.assert_reached(folder / "run", where)


# Disks


def test_full_disk(tmp_path, corpus, truth, mounted):
    """A store that fills its disk stops with one error, holds what was committed, and goes on when there is room."""
    disk = mounted("400k")
    problem = write_problem(tmp_path, corpus, at=disk / "store")
    error = assert_one_clear_error(*fit_within("pass", tmp_path, problem))
    assert "No space left on device" in error or "disk space" in error
    witness = Witness(disk / "store" / "_log")
    witness.look()
    store = Store(disk / "store")
    assert 0 < store.head().n_rows < truth.moments.n_rows
    assert verify(store).faults == []
    assert subprocess.run(["mount", "-o", "remount,size=50m", disk]).returncode == 0
    assert_goes_on(tmp_path, witness, truth, disk / "store")


@pytest.mark.slow
def test_full_disk_under_the_whole_run(tmp_path, corpus, truth, mounted):
    """The same with the run's own log and settings on that disk."""
    disk = mounted("400k")
    problem = write_problem(disk, corpus)
    machine = tmp_path / "machine.toml"
    machine.write_text('kind = "serial"\n')
    error = assert_one_clear_error(*run_command(tmp_path, "fit", problem, "--machine", machine))
    assert "disk space" in error
    witness = Witness(disk / "run" / "store" / "_log")
    witness.look()
    assert subprocess.run(["mount", "-o", "remount,size=50m", disk]).returncode == 0
    assert_goes_on(disk, witness, truth, disk / "run" / "store")


@pytest.mark.parametrize(
    ("n_centers", "limit", "what"),
    [
        pytest.param(40, 9_000, "segments/", id="chunk", marks=pytest.mark.slow),
        pytest.param(8, 4_900, "log record", id="log record", marks=pytest.mark.slow),
    ],
)
def test_file_that_may_not_grow(tmp_path, corpus, serial, quiet, n_centers, limit, what):
    """No file may be as large as a chunk of a Gram matrix, or as a log record of twenty segments: it is never half."""
    (tmp_path / "truth").mkdir()
    truth = Truth(tmp_path / "truth", corpus, serial, quiet, n_centers=n_centers, max_live=64)
    problem = write_problem(tmp_path, corpus, n_centers=n_centers, max_live=64)
    error = assert_one_clear_error(*fit_within(FILES_OF.format(n=limit), tmp_path, problem))
    assert f"cannot write {what}" in error
    assert "File too large" in error
    witness = Witness(tmp_path / "run" / "store" / "_log")
    witness.look()
    assert verify(Store(tmp_path / "run" / "store")).faults == []
    code, text = fit_within("pass", tmp_path, problem)
    assert code == 0, text
    assert witness.lost() == []
    truth.assert_reached(tmp_path / "run")


def test_store_that_may_not_be_written(tmp_path, corpus, truth):
    """Made read-only half way: one error and nothing changed; it can be read; writable again, the run goes on."""
    problem = write_problem(tmp_path, corpus)
    store = half_done(tmp_path, problem, tmp_path / "run" / "store")
    before = tree(store.place.local)
    folders = [store.place.local, *(p for p in store.place.local.rglob("*") if p.is_dir())]
    what = NO_OVERRIDE if os.geteuid() == 0 else "pass"
    set_writable(folders, False)
    try:
        error = assert_one_clear_error(*fit_within(what, tmp_path, problem))
        assert "Permission denied" in error or "permissions" in error
        assert tree(store.place.local) == before
        assert verify(Store(store.url)).faults == []
    finally:
        set_writable(folders, True)
    code, text = fit_within("pass", tmp_path, problem)
    assert code == 0, text
    truth.assert_reached(tmp_path / "run")


@pytest.mark.slow
def test_file_system_that_may_not_be_written(tmp_path, corpus, truth, mounted):
    """The same of a disk that is mounted read-only, which binds root as well."""
    disk = mounted("50m")
    problem = write_problem(tmp_path, corpus, at=disk / "store")
    store = half_done(tmp_path, problem, disk / "store")
    before = tree(disk)
    assert subprocess.run(["mount", "-o", "remount,ro", disk]).returncode == 0
    error = assert_one_clear_error(*fit_within("pass", tmp_path, problem))
    assert "Read-only file system" in error
    assert tree(disk) == before
    assert subprocess.run(["mount", "-o", "remount,rw", disk]).returncode == 0
    code, text = fit_within("pass", tmp_path, problem)
    assert code == 0, text
    truth.assert_reached(tmp_path / "run", store.place.local)


def half_done(folder, problem, store):
    """Begin a run and kill it after some commits; the store."""
    machine = folder / "machine.toml"
    machine.write_text('kind = "serial"\n')
    begun = Process(folder / "begun.txt", STREAMFIT, "fit", problem, "--machine", machine)
    until(lambda: begun.code is not None or (store / "_log" / "0000000005.json").exists())
    assert begun.kill() == -signal.SIGKILL, begun.text()
    assert Store(store).head().sequence < N_SHARDS
    return Store(store)


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def set_writable(folders, writable):
    for folder in folders:
        folder.chmod(stat.S_IRWXU if writable else stat.S_IRUSR | stat.S_IXUSR)


# Damage


@pytest.fixture
def store(tmp_path):
    """Five segments, one commit each."""
    store = Store.create(tmp_path / "store", racer.HEADER)
    for number in range(5):
        racer.add(store, number)
    return store


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("damage", "pattern"),
    [
        (flip, "segments/*/gram/c/0/0/0"),
        (Path.unlink, "segments/*/gram/c/0/0/0"),
        (flip, "ledgers/*.parquet"),
        (truncate, "_log/0000000005.json"),
    ],
    ids=["flipped chunk", "deleted chunk", "flipped ledger", "truncated newest record"],
)
def test_damage_stops_every_use_and_destroys_nothing_more(store, damage, pattern, monkeypatch, capsys):
    """A command ends in one error that names the place; put back, all is there, and commits go on."""
    path = min(store.place.local.glob(pattern))
    whole, moments = path.read_bytes(), store.moments()
    damage(path)
    # A solve needs no ledger, and a commit no sums.
    commands = [["verify"], *([] if "ledgers" in pattern else [["solve", "--alpha", "1"]])]
    for name, *options in commands:
        monkeypatch.setattr(sys, "argv", ["streamfit", name, store.url, *options])
        with pytest.raises(SystemExit) as caught:
            main()
        assert_one_clear_error(caught.value.code, capsys.readouterr().err)
    before = tree(store.place.local / "_log")
    if "segments" not in pattern:
        with pytest.raises(StoreError):
            racer.add(Store(store.url), 7)
        assert tree(store.place.local / "_log") == before
    path.write_bytes(whole)
    assert Store(store.url).moments() == moments
    racer.add(Store(store.url), 8)
    assert verify(Store(store.url)).faults == []
    assert Store(store.url).moments() == moments + racer.moments_of(8)


def test_truncated_record_in_the_middle_is_found_and_harms_no_commit(store):
    """An old record is not needed to go on: commits are taken, and only looking back ends in an error."""
    path = store.place.local / "_log" / "0000000002.json"
    whole, moments = path.read_bytes(), store.moments()
    truncate(path)
    again = Store(store.url)
    racer.add(again, 9)
    assert again.moments() == moments + racer.moments_of(9)
    (fault,) = verify(again).faults
    assert "0000000002.json is truncated" in fault
    for use in (again.records, lambda: Store(store.url, 2), lambda: racer.assert_nothing_lost(store.url, [])):
        with pytest.raises(StoreError, match=r"0000000002\.json is truncated"):
            use()
    path.write_bytes(whole)
    assert verify(Store(store.url)).faults == []


def test_stray_files_are_not_read_and_go_with_a_later_collection(store):
    """What kills leave half-written, of our own records and of obstore's objects, is no record and no chunk."""
    folder, moments = store.place.local, store.moments()
    segment = folder / "segments" / store.head().segments[0].id
    strays = [folder / "_log" / ".0a.partial", folder / "_log" / "0000000009.json#1", segment / "gram" / "zarr.json#3"]
    for path in strays:
        path.write_bytes(b"{")
    assert Store(store.url).moments() == moments
    assert verify(Store(store.url)).faults == []
    racer.add(Store(store.url), 6)
    collect(store, grace=0.0)
    assert all(path.exists() for path in strays)  # somebody may be at it
    for path in strays:
        os.utime(path, (time.time() - 3600, time.time() - 3600))
    collect(store, grace=0.0)
    assert not any(path.exists() for path in strays)
    assert Store(store.url).moments() == moments + racer.moments_of(6)


def test_listing_that_shows_a_record_but_not_the_one_before_is_no_damage(store, monkeypatch):
    """POSIX lets a folder that others write to be listed so; a record that is really gone is told by asking for it."""
    head, whole = store.head(), Place.list

    def without_4(place, prefix, after=None):
        return [item for item in whole(place, prefix, after) if not item[0].endswith("4.json")]

    monkeypatch.setattr(Place, "list", without_4)
    assert Store(store.url).head() == head
    (store.place.local / "_log" / "0000000004.json").unlink()
    with pytest.raises(StoreError, match=r"log records \[4\] are missing"):
        Store(store.url)


# Clocks


def set_clock(folder, hours):
    for path in folder.rglob("*"):
        os.utime(path, (time.time() + 3600 * hours,) * 2)


@pytest.mark.parametrize("hours", [-72, 72], ids=["behind", "ahead"])
def test_times_of_objects_decide_nothing_that_is_committed(store, hours):
    """With clocks days apart, collection takes just what the log has given up, and never what it names."""
    moments = store.moments()
    set_clock(store.place.local, hours)
    assert collect(store) == Collected(0, 0, 0)
    racer.forget(store, 3, fast=True)
    compact(store)
    set_clock(store.place.local, hours)
    assert verify(store).faults == []
    purge(store)
    live = {segment.id for segment in store.head().segments}
    assert {path.name for path in (store.place.local / "segments").iterdir() if path.is_dir()} == live
    assert verify(store).faults == []
    assert store.moments() == moments - racer.moments_of(3)


def test_segment_that_a_wrong_clock_made_old_is_not_committed(store):
    """Collected before its commit, because its writer's clock was days behind: one error, and no record names it."""
    segment = store.write_segment(racer.moments_of(7), [racer.shard_of(7)], [racer.ROWS])
    set_clock(store.place.local, -72)
    head = store.head()
    assert collect(Store(store.url)).orphans == 1
    with pytest.raises(StoreError, match="missing"):
        store.commit([segment])
    assert Store(store.url).head() == head
    assert verify(Store(store.url)).faults == []
