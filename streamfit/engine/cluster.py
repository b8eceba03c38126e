"""Where tasks run: a Dask cluster on this machine, an existing scheduler, or this process.

Floor 5: imports errors; the only file that starts or finds a cluster.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import dask
import psutil
from distributed import Client, LocalCluster, Worker, WorkerPlugin

from streamfit.arrays import Backend
from streamfit.errors import ConfigError

_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")


@dataclass(frozen=True)
class Machine:
    """A place to run, apart from the problem that is run there.

    Parameters
    ----------
    kind : {'local', 'address', 'serial'}
        A cluster of worker processes on this machine, a scheduler that runs already, or this process alone.
    n_workers : int
        Worker processes; 0 takes one a core.
    threads_per_worker : int
        Threads that multiply tiles in each worker; 0 takes cores / workers.
    memory_limit : int
        Bytes for each worker; 0 shares 80% of what is free.
    address : str
        Of the scheduler, for kind 'address'.
    backend : {'numpy', 'cuda'}
        Array library of the workers. `cuda` needs CuPy and has not been run on hardware.
    """

    kind: Literal["local", "address", "serial"] = "local"
    n_workers: int = 0
    threads_per_worker: int = 0
    memory_limit: int = 0
    address: str = ""
    backend: Backend = "numpy"

    @property
    def workers(self) -> int:
        """Worker processes on this machine."""
        return 1 if self.kind == "serial" else self.n_workers or cores()

    @property
    def threads(self) -> int:
        """Threads a worker."""
        return self.threads_per_worker or max(1, cores() // self.workers)

    @property
    def worker_memory(self) -> int:
        """Bytes for each worker."""
        return self.memory_limit or int(0.8 * psutil.virtual_memory().available) // self.workers


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connect(machine: Machine) -> Iterator[Client | None]:
    """Start or find the cluster of a machine; None stands for this process.

    Raises
    ------
    ConfigError
        If no scheduler answers at the address.
    """
    if machine.kind == "serial":
        yield None
    elif machine.kind == "address":
        # A scheduler that is lost is told in one line; Dask's own reports of its attempts to reconnect would bury it.
        for name in ("distributed.client", "distributed.batched", "distributed.comm", "distributed.core"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            client = Client(machine.address, timeout="20s")
        except (OSError, ValueError, TimeoutError) as error:
            msg = f"no Dask scheduler at {machine.address!r}: {error}"
            raise ConfigError(msg, "the address of a running scheduler") from error
        with client:
            yield client
    else:
        with _local(machine) as client:
            yield client


@contextmanager
def _local(machine: Machine) -> Iterator[Client]:
    # Products run on one BLAS thread each and tiles in parallel (see MomentsAccumulator): OpenBLAS rounds
    # differently with other thread counts, and sums must not depend on how many workers share the cores.
    environ = dict.fromkeys(_BLAS_VARIABLES, "1") | {"TOKENIZERS_PARALLELISM": "false"}
    # Blocks of tens of megabytes come and go; giving each back to the system costs a page fault for every 4 kB.
    environ |= dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**28))
    settings = {
        "distributed.nanny.pre-spawn-environ": environ,
        "distributed.worker.daemon": True,
        "distributed.comm.timeouts.connect": "60s",
        # A group's task holds the interpreter for long stretches inside BLAS; that is not a fault.
        "distributed.admin.tick.limit": "60s",
        "distributed.scheduler.allowed-failures": 5,
    }
    # The plan bounds memory before the run; spilling or pausing in the middle would only hide a mistake.
    settings |= {f"distributed.worker.memory.{act}": False for act in ("target", "spill", "pause")}
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=machine.workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=machine.worker_memory,
            dashboard_address="127.0.0.1:0",
            # Faults of tasks come back as results; what is left at this level is heartbeats of an end, as at Ctrl-C.
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(machine.workers, timeout=120)
        client.register_plugin(_Uninterrupted())
        yield client


class _Uninterrupted(WorkerPlugin):
    """Workers leave Ctrl-C, which a terminal sends to them as well, to the coordinator, which then ends them."""

    name = "streamfit-uninterrupted"

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
