"""A Dask cluster and a coordinator in processes of their own, a hand that kills them, and what must hold afterwards."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from chaos import racer

from streamfit.config import load_problem
from streamfit.jobs import fit
from streamfit.models import LinearModel
from streamfit.store import Store, verify

STREAMFIT = Path(sys.executable).with_name("streamfit")
ROWS = 40
PROBLEM = """
kind = "ridge"
run = "{run}"
precision = "float64"
group_rows = {rows}
[corpus]
kind = "parquet"
root = "{corpus}"
features = ["x", "z"]
target = ["y"]
[[features]]
kind = "linear"
[[features]]
kind = "rbf"
n = {n_centers}
[solve]
alphas = [0.1, 1.0]
folds = 3
[store]
at = "{at}"
max_live = {max_live}
keep = 4
"""
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}


def write_corpus(folder, n_shards):
    """Two Parquet files of small row groups, each of which becomes a group, a segment and a commit."""
    rng = np.random.default_rng(5)
    for i in range(2):
        x, z, noise = rng.normal(size=(3, n_shards // 2 * ROWS))
        table = pa.table({"x": x, "z": z, "y": np.sin(x) + z + noise})
        pq.write_table(table, folder / f"{i}.parquet", row_group_size=ROWS)
    return folder


def write_problem(folder, corpus, *, at="", max_live=12, n_centers=40):
    """`problem.toml` in a folder, whose run is `run` beside it."""
    path = folder / "problem.toml"
    facts = {"run": folder / "run", "corpus": corpus, "at": at, "max_live": max_live, "n_centers": n_centers}
    path.write_text(PROBLEM.format(rows=ROWS, **facts))
    return path


class Truth:
    """What a run in one process that nobody disturbs makes of a corpus."""

    def __init__(self, folder, corpus, serial, quiet, **options):
        fitted = fit(load_problem(write_problem(folder, corpus, **options)), serial, None, quiet)
        self.moments, self.weights = fitted.solved.moments, weights_of(folder / "run" / "model")
        self.n_shards = fitted.summary.n_shards

    def assert_reached(self, run, where=None):
        """The store holds these sums, each shard once, and is whole; the saved model has these weights."""
        store = Store(where or run / "store")
        counted = [shard.content_id for segment in store.head().segments for shard in store.ledger(segment)]
        assert len(counted) == len(set(counted)) == self.n_shards
        assert store.moments() == self.moments
        assert verify(store).faults == []
        assert weights_of(run / "model") == self.weights


def weights_of(folder):
    solution = LinearModel.load(folder).solution
    return solution.weights.tobytes(), solution.intercept.tobytes(), solution.alpha


class Process:
    """A command in a session of its own, with its output in a file."""

    def __init__(self, output, *command, env=None):
        self.output, self.command = output, [str(part) for part in command]
        with output.open("a") as file:
            self._popen = subprocess.Popen(
                self.command,
                stdout=file,
                stderr=file,
                start_new_session=True,
                cwd=output.parent,
                env=os.environ | ENVIRONMENT | (env or {}),
            )
        self.pid = self._popen.pid

    @property
    def code(self):
        """Exit code, or None while it runs."""
        return self._popen.poll()

    def send(self, which):
        if self.code is None:
            os.killpg(self.pid, which)

    def kill(self, *, alone=False):
        """SIGKILL, to the processes that it started as well unless it alone is meant."""
        if alone:
            self._popen.kill()
        else:
            self.send(signal.SIGKILL)
        return self._popen.wait()

    def wait(self, timeout=120):
        return self._popen.wait(timeout)

    def text(self):
        return self.output.read_text()


def run_command(folder, *arguments, timeout=120, env=None):
    """Run a `streamfit` command to its end; its exit code and what it printed."""
    output = folder / f"command-{time.monotonic_ns()}.txt"
    process = Process(output, STREAMFIT, *arguments, env=env)
    return process.wait(timeout), process.text()


def assert_one_clear_error(code, text):
    """A mistake in input or environment: exit code 2 and one line that says so."""
    lines = [line for line in text.splitlines() if line.startswith("error: ")]
    assert (code, len(lines), "Traceback" in text) == (2, 1, False), text
    return lines[0]


def until(condition, timeout=60.0, pause=0.02):
    """Poll until a condition holds; gives what it gave."""
    end = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(pause)
    return found


class Witness:
    """Remembers every log record that it has seen; none may change or vanish."""

    def __init__(self, log):
        self._log = log
        self._seen = {}

    def look(self):
        for path in self._log.glob("*.json"):
            if path.name not in self._seen:
                self._seen[path.name] = path.read_bytes()

    def lost(self):
        """Records that were seen and are no longer as they were."""
        return [name for name, data in self._seen.items() if _bytes(self._log / name) != data]

    def __len__(self):
        return len(self._seen)


def _bytes(path):
    return path.read_bytes() if path.exists() else None


class Cluster:
    """A Dask scheduler and workers in processes of their own; what died is started again by `mend`."""

    def __init__(self, folder, n_workers):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.scheduler = self._scheduler()
        self.workers = [self._worker() for _ in range(n_workers)]

    def _scheduler(self):
        command = ("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", self.port, "--no-dashboard")
        return Process(self.folder / "scheduler.txt", sys.executable, "-m", *command)

    def _worker(self):
        command = ("distributed.cli.dask_worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard")
        where = ("--local-directory", self.folder / "dask", "--host", "127.0.0.1", "--memory-limit", 0)
        return Process(self.folder / "workers.txt", sys.executable, "-m", *command, *where)

    def mend(self):
        if self.scheduler.code is not None:
            self.scheduler = self._scheduler()
        self.workers = [self._worker() if worker.code is not None else worker for worker in self.workers]

    def close(self):
        for process in (*self.workers, self.scheduler):
            process.kill()


class Chaos:
    """Runs a problem on a cluster to its end, while a seeded random hand kills processes.

    Parameters
    ----------
    folder, corpus : Path
    n_workers : int
    seed : int
    """

    def __init__(self, folder, corpus, n_workers, seed):
        self.folder = folder
        self._config = write_problem(folder, corpus)
        self._cluster = Cluster(folder, n_workers)
        self._machine = folder / "machine.toml"
        self._machine.write_text(f'kind = "address"\naddress = "{self._cluster.address}"\nthreads_per_worker = 1\n')
        self._rng = np.random.default_rng(seed)
        self.witness = Witness(folder / "run" / "store" / "_log")
        self.kills, self.codes = Counter(), Counter()
        self.runs = 0

    def _coordinator(self):
        self.runs += 1
        run = self.folder / "run"
        known = (run / "machine.json").is_file()
        arguments = ("resume", run) if known else ("fit", self._config, "--machine", self._machine)
        return Process(self.folder / f"coordinator-{self.runs}.txt", STREAMFIT, *arguments)

    def run(self, kinds, by_time=0.5, wait=(0.3, 8.0), timeout=900.0):
        """Start and restart until the coordinator ends by itself without an error, and kill on the way.

        Parameters
        ----------
        kinds : sequence of {'worker', 'scheduler', 'coordinator'}
            What to kill, one after another, as long as the run lasts.
        by_time : float
            Share of kills that come after a random time, wherever the run is; the others, after a few more commits.
        wait : (float, float)
            Seconds between kills.
        timeout : float
        """
        waiting, coordinator = list(kinds), self._coordinator()
        end = time.monotonic() + timeout
        due = self._due(by_time, wait)
        try:
            while True:
                assert time.monotonic() < end, f"not done: {self.codes}, {coordinator.text()}"
                time.sleep(0.02)
                self.witness.look()
                self._cluster.mend()
                if coordinator.code is not None:
                    self.codes[coordinator.code] += 1
                    if coordinator.code == 0:
                        return
                    if coordinator.code != -signal.SIGKILL:
                        assert_one_clear_error(coordinator.code, coordinator.text())
                    coordinator = self._coordinator()
                if waiting and due():
                    self.kills[waiting[0]] += 1
                    self._process(waiting.pop(0), coordinator).kill()
                    due = self._due(by_time, wait)
        finally:
            coordinator.kill()
            self._cluster.close()

    def _due(self, by_time, wait):
        """Tells when the next kill is to come."""
        if self._rng.random() < by_time:
            when = time.monotonic() + self._rng.uniform(*wait)
            return lambda: time.monotonic() > when
        n_commits = len(self.witness) + self._rng.integers(2, 7)
        return lambda: len(self.witness) >= n_commits

    def _process(self, kind, coordinator):
        workers = self._cluster.workers
        worker = workers[self._rng.integers(len(workers))]
        return {"worker": worker, "coordinator": coordinator, "scheduler": self._cluster.scheduler}[kind]


def run_race(folder, url, *, n_racers, n_commits, light=0.0, n_kills=0, seed=0):
    """Let coordinators race on a store until each has its commits acknowledged; what is killed is started again.

    Returns
    -------
    list of Path
        Notes of what was begun and acknowledged; see `racer`.
    """
    rng = np.random.default_rng(seed)
    notes = [folder / f"notes-{which}.jsonl" for which in range(n_racers)]

    def start(which):
        command = (sys.executable, racer.__file__, url, notes[which], which, n_commits, light)
        return Process(folder / f"racer-{which}.txt", *command, env={"PYTHONPATH": os.pathsep.join(sys.path)})

    racers = [start(which) for which in range(n_racers)]
    # Kills come at random parts of the work, and not of the time, of which a fast machine needs little.
    due = sorted(n_racers * n_commits * rng.uniform(0.1, 0.8, n_kills), reverse=True)
    try:
        while any(process.code is None for process in racers):
            time.sleep(0.02)
            alive = [which for which in range(n_racers) if racers[which].code is None]
            if due and alive and _acknowledged(notes) >= due[-1]:
                which = int(rng.choice(alive))
                racers[which].kill()
                racers[which] = start(which)
                due.pop()
        assert [process.code for process in racers] == [0] * n_racers, racers[0].text() + racers[-1].text()
        assert not due, "the race was too short for its kills"
    finally:
        for process in racers:
            process.kill()
    return notes


def _acknowledged(notes):
    return sum(path.read_text().count('"done"') for path in notes if path.exists())
