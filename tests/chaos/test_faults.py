"""A disk that is full, a store that may not be written, damage, clocks that are wrong: the right sums or one error."""

import os
import shutil
import stat
import subprocess
import sys
import time

import pytest
from chaos.harness import (
    STREAMFIT,
    Process,
    Truth,
    Witness,
    assert_one_clear_error,
    run_command,
    write_corpus,
    write_problem,
)

from streamfit.store import Store, verify

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


@pytest.mark.parametrize("limit", [10_000, 3_000], ids=["chunk", "log record"])
def test_file_that_may_not_grow(tmp_path, corpus, truth, limit):
    """No file may be larger than a chunk of the Gram matrix, or than a log record of several segments."""
    problem = write_problem(tmp_path, corpus)
    error = assert_one_clear_error(*fit_within(FILES_OF.format(n=limit), tmp_path, problem))
    assert "cannot write" in error
    witness = Witness(tmp_path / "run" / "store" / "_log")
    witness.look()
    if len(witness):
        assert verify(Store(tmp_path / "run" / "store")).faults == []
    code, text = fit_within("pass", tmp_path, problem)
    assert code == 0, text
    assert witness.lost() == []
    truth.assert_reached(tmp_path / "run")


def test_store_that_may_not_be_written(tmp_path, corpus, truth):
    """Made read-only half way: one error and nothing changed; it can be read; writable again, the run goes on."""
    problem = write_problem(tmp_path, corpus)
    store = half_done(tmp_path, problem, corpus)
    before = tree(store.place.local)
    folders = [store.place.local, *(p for p in store.place.local.rglob("*") if p.is_dir())]
    what = NO_OVERRIDE if os.geteuid() == 0 else "pass"
    set_writable(folders, False)
    try:
        error = assert_one_clear_error(*fit_within(what, tmp_path, problem))
        assert "Permission denied" in error or "permissions" in error
        assert tree(store.place.local) == before
        code, text = run_command(tmp_path, "status", store.place.local)
        assert code == 0, text
    finally:
        set_writable(folders, True)
    code, text = fit_within("pass", tmp_path, problem)
    assert code == 0, text
    truth.assert_reached(tmp_path / "run")


def test_file_system_that_may_not_be_written(tmp_path, corpus, truth, mounted):
    """The same of a disk that is mounted read-only, which binds root as well."""
    disk = mounted("50m")
    problem = write_problem(tmp_path, corpus, at=disk / "store")
    store = half_done(tmp_path, problem, corpus)
    before = tree(disk)
    assert subprocess.run(["mount", "-o", "remount,ro", disk]).returncode == 0
    error = assert_one_clear_error(*fit_within("pass", tmp_path, problem))
    assert "Read-only file system" in error
    assert tree(disk) == before
    assert subprocess.run(["mount", "-o", "remount,rw", disk]).returncode == 0
    code, text = fit_within("pass", tmp_path, problem)
    assert code == 0, text
    truth.assert_reached(tmp_path / "run", store.place.local)


def half_done(folder, problem, corpus):
    """The store of a run that has counted one of the two files of its corpus."""
    away = folder / "1.parquet"
    (corpus / "1.parquet").rename(away)
    try:
        code, text = fit_within("pass", folder, problem)
    finally:
        away.rename(corpus / "1.parquet")
    assert code == 0, text
    at = [line.split('"')[1] for line in problem.read_text().splitlines() if line.startswith("at = ")][0]
    return Store(at or folder / "run" / "store")


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def set_writable(folders, writable):
    for folder in folders:
        folder.chmod(stat.S_IRWXU if writable else stat.S_IRUSR | stat.S_IXUSR)
