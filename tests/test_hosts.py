"""Several hosts, each a network namespace on one switch: one is cut off in the midst of its work, and may come back."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import ok, total
from gated_worker import Gate

from streamfit.store import Store

N_SHARDS = 24
HOSTS = {"head": "10.77.0.1", "left": "10.77.0.2", "right": "10.77.0.3", "desk": "10.77.0.4"}
ADDRESS = f"tcp://{HOSTS['head']}:8786"
BIN = Path(sys.executable).parent
pytestmark = pytest.mark.slow  # a host counts as lost after 11 seconds at the earliest


class Hosts:
    """Namespaces joined by a bridge in another one; nothing beyond them is reached, nor reaches them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._started = folder, list[subprocess.Popen[bytes]]()
        self._names = {name: f"sf{os.getpid()}-{name}" for name in ("switch", *HOSTS)}

    def build(self) -> None:
        for name in self._names.values():
            _ip("netns", "add", name)
        switch = self._names["switch"]
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for host, address in HOSTS.items():
            there = self._names[host]
            _ip("-n", switch, "link", "add", host, "type", "veth", "peer", "name", "eth0", "netns", there)
            _ip("-n", switch, "link", "set", host, "master", "switch", "up")
            _ip("-n", there, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", there, "link", "set", device, "up")

    def link(self, host: str, state: str) -> None:
        """Pull the plug of a host at the switch, or put it in: 'down' or 'up'."""
        _ip("-n", self._names["switch"], "link", "set", host, state)

    def start(self, host: str, name: str, script: str, **variables: object) -> subprocess.Popen[bytes]:
        """Run lines of shell there; what they print goes to a file of that name."""
        environ = os.environ | {key: str(value) for key, value in variables.items()}
        environ["PATH"] = f"{BIN}{os.pathsep}{environ['PATH']}"
        with (self.folder / f"{name}.txt").open("w") as output:
            command = ["ip", "netns", "exec", self._names[host], "sh", "-c", script]
            started = subprocess.Popen(command, stdout=output, stderr=output, cwd=self.folder, env=environ)
        self._started.append(started)
        return started

    def processes(self, host: str) -> list[int]:
        """What runs there."""
        return [int(pid) for pid in _ip("netns", "pids", self._names[host]).split()]

    def remove(self) -> None:
        there = [n for n in self._names.values() if n in _ip("netns", "list").split()]
        for name in there:
            for pid in _ip("netns", "pids", name).split():
                try:
                    psutil.Process(int(pid)).kill()
                except psutil.NoSuchProcess:
                    continue
        for process in self._started:
            process.wait()
        for name in there:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("no command ip (iproute2)")
    made = Hosts(tmp_path)
    try:
        try:
            made.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not allowed here: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tuple[Path, str]:
    """A corpus in many shards, and the digest of its sums in one process that nobody disturbs."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "corpus").mkdir()
    x, z, y = np.random.default_rng(8).normal(size=(3, 60 * N_SHARDS))
    pq.write_table(pa.table({"x": x, "z": z, "y": y}), folder / "corpus" / "0.parquet", row_group_size=60)
    (folder / "serial.toml").write_text('kind = "serial"\n')
    ok("fit", problem(folder, folder / "corpus"), "--machine", folder / "serial.toml")
    return folder / "corpus", total(folder / "run")


def problem(folder: Path, corpus: Path) -> Path:
    path = folder / "problem.toml"
    path.write_text(
        f'kind = "ridge"\nrun = "{folder / "run"}"\ngroup_rows = 60\n'
        f'[corpus]\nroot = "{corpus}"\nfeatures = ["x", "z"]\ntarget = ["y"]\n'
        f"[solve]\nfolds = 2\n[store]\nmax_live = {4 * N_SHARDS}\n"
    )
    return path


class Run:
    """`streamfit fit` at the desk, a scheduler on the head, workers left and right, which begin shards as they may."""

    def __init__(self, hosts: Hosts, corpus: Path) -> None:
        self.hosts, folder = hosts, hosts.folder
        self.store = folder / "run" / "store"
        machine = folder / "machine.toml"
        machine.write_text(f'kind = "address"\naddress = "{ADDRESS}"\nlost_after = 11\n')
        *lines, scheduler, worker = ok("machine", machine).strip().splitlines()
        self._exports = "\n".join(lines)
        self.start_scheduler = f"{self._exports}\nexec {scheduler} --no-dashboard"
        self.start_worker = f"{self._exports}\nexec {worker} --no-dashboard --preload gated_worker"
        self.fit = shlex.join(["exec", "streamfit", "fit", str(problem(folder, corpus)), "--machine", str(machine)])
        (folder / "gates").mkdir()
        self.gates = {name: Gate(folder / "gates", name) for name in ("left", "right")}
        hosts.start("head", "scheduler", self.start_scheduler)
        for host in self.gates:
            self.worker(host)
        self.command = hosts.start("desk", "fit", self.fit)

    def again(self) -> None:
        """The same command once more."""
        self.command = self.hosts.start("desk", "fit", self.fit)

    def worker(self, host: str) -> subprocess.Popen[bytes]:
        self.gates[host].let(3)
        return self.hosts.start(
            host,
            host,
            self.start_worker,
            GATE_FOLDER=self.hosts.folder / "gates",
            GATE_HOST=host,
            PYTHONPATH=f"{Path(__file__).parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        )

    def wait_until(self, condition: Callable[[], bool], within: float = 60) -> None:
        until = time.monotonic() + within
        while not condition():
            assert self.command.poll() is None, self.printed()
            assert time.monotonic() < until, self.printed()
            time.sleep(0.05)

    def both_are_held(self) -> None:
        """Wait until each has written three segments and has begun to read a shard for a fourth."""
        self.wait_until(lambda: all(len(gate.noted("began")) == 4 for gate in self.gates.values()))
        self.wait_until(lambda: len(self.live()) == 6)

    def live(self) -> set[str]:
        return {s.id for s in Store(self.store).head().segments} if Store.exists(self.store) else set()

    def ends_with(self, expected: str) -> None:
        """The command ends well, with the bits of the undisturbed run, each shard counted once."""
        assert self.command.wait(timeout=120) == 0, self.printed()
        assert "Traceback" not in self.printed()
        store = Store(self.store)
        counted = [shard.content_id for segment in store.head().segments for shard in store.ledger(segment)]
        assert len(counted) == len(set(counted)) == N_SHARDS
        assert total(self.store.parent) == expected

    def printed(self) -> str:
        return (self.hosts.folder / "fit.txt").read_text()


def test_a_host_that_is_cut_off_and_stays_so(hosts, corpus):
    run = Run(hosts, corpus[0])
    run.both_are_held()
    left, right = run.gates["left"], run.gates["right"]
    hosts.link("left", "down")
    right.let(2 * N_SHARDS)
    run.ends_with(corpus[1])
    given_again = left.noted("began")[3]
    assert given_again in right.noted("began"), "its work has gone to the other"
    assert len(left.noted("wrote")) == 3


def test_a_host_that_comes_back_with_a_segment_that_another_has_counted(hosts, corpus):
    run = Run(hosts, corpus[0])
    run.both_are_held()
    left, right = run.gates["left"], run.gates["right"]
    hosts.link("left", "down")
    held = left.noted("began")[3]
    right.let(2 * N_SHARDS)
    run.wait_until(lambda: held in right.noted("began"))
    hosts.link("left", "up")
    left.let(2 * N_SHARDS)
    run.wait_until(lambda: len(left.noted("wrote")) == 4)
    late = left.noted("wrote")[3]
    run.ends_with(corpus[1])
    assert late not in run.live()
    assert (run.store / "segments" / late).is_dir(), "an orphan, which collection removes"


def test_a_coordinator_that_is_cut_off_says_so_and_goes_on_when_it_is_run_again(hosts, corpus):
    run = Run(hosts, corpus[0])
    run.both_are_held()
    hosts.link("desk", "down")
    assert run.command.wait(timeout=60) == 2, run.printed()
    assert f"error: the Dask scheduler at {ADDRESS} was lost" in run.printed()
    assert "Traceback" not in run.printed()
    hosts.link("desk", "up")
    run.again()
    for gate in run.gates.values():
        gate.let(2 * N_SHARDS)
    run.ends_with(corpus[1])
    assert "6 shards are counted already" in run.printed()
