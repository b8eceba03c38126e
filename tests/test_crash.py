"""Killed at any moment, a run goes on where its last commit was and ends with the bits of an undisturbed one."""

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import psutil
import pytest
from chaos.harness import STREAMFIT, write_corpus, write_problem

from streamfit.config import load_problem
from streamfit.jobs import fit
from streamfit.store import Store

N_SHARDS = 48


class Command:
    """A `streamfit` command with its workers, in a session of its own."""

    def __init__(self, folder, *arguments):
        with (folder / "output.txt").open("w") as output:
            self.process = subprocess.Popen(
                [STREAMFIT, *arguments], stdout=output, stderr=output, start_new_session=True, cwd=folder
            )
        self.folder = folder

    def kill(self):
        """SIGKILL the client alone, and wait until its workers have died by themselves."""
        self.process.kill()
        self.process.wait()
        until = time.monotonic() + 15
        while left := self.session():
            assert time.monotonic() < until, f"left behind: {left}"
            time.sleep(0.1)

    def session(self):
        """Processes that this command started, itself included."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def wait_until(self, condition):
        """Poll until the condition holds; a command that ends before is a fault."""
        while not condition():
            assert self.process.poll() is None, self.output()
            time.sleep(0.01)

    def finish(self):
        assert self.process.wait(timeout=120) == 0, self.output()

    def output(self):
        return (self.folder / "output.txt").read_text()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Many small row groups, so that a run is many commits."""
    return write_corpus(tmp_path_factory.mktemp("corpus"), N_SHARDS)


@pytest.fixture
def config(tmp_path, corpus):
    (tmp_path / "machine.toml").write_text("n_workers = 2\nthreads_per_worker = 1\n")
    return write_problem(tmp_path, corpus, max_live=2 * N_SHARDS)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus, serial, quiet):
    """Moments of a run in one process that nobody interrupts."""
    path = write_problem(tmp_path_factory.mktemp("undisturbed"), corpus, max_live=2 * N_SHARDS)
    return fit(load_problem(path), serial, None, quiet).solved.moments


def start(config):
    """Begin the run, or go on with it once it can be resumed."""
    run = config.parent / "run"
    if (run / "machine.json").is_file():
        return Command(config.parent, "resume", run)
    return Command(config.parent, "fit", config, "--machine", config.parent / "machine.toml")


def n_commits(config):
    return len(list((config.parent / "run" / "store" / "_log").glob("*.json"))) - 1


def assert_undisturbed(config, moments):
    """The store has the sums of the quiet run, each shard once, and there is a model."""
    store = Store(config.parent / "run" / "store")
    counted = [shard for segment in store.head().segments for shard in store.ledger(segment)]
    assert len(counted) == len({shard.content_id for shard in counted}) == N_SHARDS
    assert store.moments() == moments
    assert (config.parent / "run" / "model").is_dir()


def test_killed_client_is_resumed_to_the_same_bits(config, undisturbed):
    """SIGKILL to the client in the midst of its commits; `resume` ends the run, and no worker outlives a client."""
    command = start(config)
    command.wait_until(lambda: n_commits(config) >= 9)
    command.kill()
    assert 9 <= n_commits(config) < N_SHARDS
    start(config).finish()
    assert_undisturbed(config, undisturbed)


@pytest.mark.slow
def test_client_killed_at_any_moment_is_resumed_to_the_same_bits(config, undisturbed):
    """Twenty SIGKILLs, also while features are chosen, workers start or end, sums are solved and the model is saved."""
    rng = np.random.default_rng(12)
    for _ in range(20):
        command = start(config)
        try:
            command.process.wait(timeout=rng.uniform(0.5, 9.0))
        except subprocess.TimeoutExpired:
            command.kill()
        else:
            # This one had ended first: begin anew.
            command.finish()
            assert_undisturbed(config, undisturbed)
            shutil.rmtree(config.parent / "run")
    start(config).finish()
    assert_undisturbed(config, undisturbed)


def test_interrupted_command_says_how_to_go_on_and_does(config, undisturbed):
    """Ctrl-C, which a terminal sends to client and workers alike, ends in code 130; the same command goes on."""
    command = Command(config.parent, "fit", config, "--machine", config.parent / "machine.toml")
    command.wait_until(lambda: n_commits(config) >= 1)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.process.wait(timeout=30) == 130
    output = command.output()
    assert "Traceback" not in output
    assert "to go on, run: streamfit resume" in output
    assert 1 <= n_commits(config) < N_SHARDS
    again = Command(config.parent, "fit", config, "--machine", config.parent / "machine.toml")
    again.finish()
    assert "shards are counted already" in again.output()
    assert_undisturbed(config, undisturbed)
    assert not again.session()
