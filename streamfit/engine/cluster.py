"""Where tasks run: starting or finding the cluster of a machine, and letting it go.

Floor 5: imports errors, machine and cluster_spec; the only file that starts or finds a cluster.
"""

from __future__ import annotations

import logging
import shutil
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import dask
from distributed import Client, LocalCluster, Status, Worker, WorkerPlugin

from streamfit.engine.cluster_spec import (
    cluster_resource,
    cuda_arguments,
    extra,
    job_arguments,
    job_of,
    local_arguments,
    pods_of,
    security,
    settings,
    submit_commands,
)
from streamfit.engine.machine import Machine
from streamfit.errors import ConfigError

_PLANNED: WeakKeyDictionary[Client, int] = WeakKeyDictionary()


def planned_workers(client: Client) -> int:
    """Workers that a client's machine may grow to; 0 where only the scheduler knows."""
    return _PLANNED.get(client, 0)


@contextmanager
def connect(machine: Machine) -> Iterator[Client | None]:
    """Start or find the cluster of a machine; None stands for this process.

    Raises
    ------
    ConfigError
        If no scheduler answers at the address, or a cluster cannot be started: what it needs is not installed, the
        batch system or Kubernetes refuses, or no worker comes in time.
    """
    if machine.kind == "serial":
        yield None
        return
    with dask.config.set(settings(machine)), _STARTS[machine.kind](machine) as client:
        if machine.kind != "address":
            _PLANNED[client] = machine.workers
        yield client


@contextmanager
def _address(machine: Machine) -> Iterator[Client]:
    # A scheduler that is lost is told in one line; Dask's own reports of its attempts to reconnect would bury it.
    for name in ("distributed.client", "distributed.batched", "distributed.comm", "distributed.core"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(machine.address, timeout="20s", security=_certificates(machine))
    except (OSError, ValueError, TimeoutError) as error:
        msg = f"no Dask scheduler at {machine.address!r}: {error}"
        raise ConfigError(msg, "the address of a running scheduler") from error
    except TypeError as error:  # what Dask makes of a tls:// address without certificates
        msg = f"{machine.address!r} without certificates"
        raise ConfigError(msg, "ca, cert and key in [tls]", "see configs/machine_address.toml") from error
    except RuntimeError as error:  # and of an address without TLS where it is required
        msg = f"{machine.address!r}: {error}"
        raise ConfigError(msg, "a tls:// address, or require_encryption = false") from error
    with client:
        yield client


def _certificates(machine: Machine) -> Any:
    """Certificates, tried before Dask does, whose connections would only be tried again until their time is up."""
    tls = machine.tls
    if tls is None:
        return None
    for part, path in (("ca", tls.ca), ("cert", tls.cert), ("key", tls.key)):
        if not Path(path).is_file():
            msg = f"tls.{part}: no file at {path}"
            raise ConfigError(msg, "a PEM file")
    chosen = security(tls)
    try:
        ssl.create_default_context(cafile=tls.ca).load_cert_chain(tls.cert, tls.key)
    except (ssl.SSLError, OSError) as error:
        msg = f"certificates that cannot be used ({tls.ca}, {tls.cert}, {tls.key}): {error}"
        raise ConfigError(msg, "PEM files of an authority, a certificate, and its key") from error
    return chosen


@contextmanager
def _local(machine: Machine) -> Iterator[Client]:
    with _started(lambda: LocalCluster(**local_arguments(machine)), machine) as client:
        yield client


@contextmanager
def _cuda(machine: Machine) -> Iterator[Client]:
    make = extra("dask_cuda", machine.kind).LocalCUDACluster
    arguments = cuda_arguments(machine)
    with _started(lambda: make(**arguments), machine) as client:
        yield client


@contextmanager
def _started(make: Callable[[], Any], machine: Machine) -> Iterator[Client]:
    """A cluster of processes of this one, with all of its workers.

    Raises
    ------
    ConfigError
        If it does not start.
    """
    with _interrupts_held() as held:
        try:
            begun = make()
        except (OSError, RuntimeError, ValueError) as error:
            if held:  # which ends the processes that start as well
                raise KeyboardInterrupt from error
            reason = error.__cause__ or error
            msg = f"a cluster of kind {machine.kind!r} that does not start: {reason}"
            remedy = "look at interface, local_directory and memory_limit"
            raise ConfigError(msg, "workers that start", remedy) from error
    with begun as cluster, _silent_end(), Client(cluster) as client:
        if held:
            raise KeyboardInterrupt
        client.wait_for_workers(machine.workers if machine.adapt is None else machine.adapt.minimum, timeout=120)
        _adapt(cluster, machine)
        client.register_plugin(_Uninterrupted())
        yield client


@contextmanager
def _silent_end() -> Iterator[None]:
    """After an interrupt, no reports of connections that were being made while the cluster ends: it is meant to."""
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        raise


@contextmanager
def _interrupts_held() -> Iterator[list[int]]:
    """Interrupts that came in the meantime, for the caller to heed: a cluster that is half begun cannot be ended.

    They are blocked here as well, in Dask's thread that begins in the meantime, and in the processes that it starts:
    a terminal sends Ctrl-C to all of them, and those would end with a traceback each.
    """
    held: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield held
        return
    before = signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    resource_tracker.ensure_running()  # or it begins with the first process, and unblocks interrupts in that thread
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield held
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


@contextmanager
def _jobs(machine: Machine) -> Iterator[Client]:
    job = job_of(machine)
    submit, listing = submit_commands(machine)
    if shutil.which(submit) is None:
        msg = f"no command {submit!r} here"
        raise ConfigError(msg, f"a host that may submit {machine.kind.upper()} jobs", "start streamfit on a login node")
    make = getattr(extra("dask_jobqueue", machine.kind), f"{machine.kind.upper()}Cluster")
    if job.log_directory:
        Path(job.log_directory).mkdir(parents=True, exist_ok=True)
    scheduler = {"dashboard_address": "127.0.0.1:0"}
    if job.scheduler_interface:
        scheduler["interface"] = job.scheduler_interface
    arguments = job_arguments(machine) | {
        "security": _certificates(machine),
        "scheduler_options": scheduler,
        "silence_logs": logging.CRITICAL,
    }
    with make(**arguments) as cluster, _refusals(cluster):
        try:
            cluster.sync(_submitted, cluster, machine.workers if machine.adapt is None else machine.adapt.minimum)
        except (RuntimeError, OSError) as error:
            reason = str(error).partition("stderr:")[2].strip() or str(error)
            msg = f"a job that {submit} refused: {' '.join(reason.split())}"
            raise ConfigError(msg, "a job that the batch system takes", "see it with `streamfit machine`") from error
        with Client(cluster) as client:
            _first_worker(client, job.start_timeout, f"look at {listing} and at the jobs' output")
            _adapt(cluster, machine)
            yield client


@contextmanager
def _refusals(cluster: Any) -> Iterator[None]:
    """Jobs that were refused, at the start or when more were asked for, stay 'created', which ends no cluster well."""
    try:
        yield
    finally:
        for job in list(cluster._created):
            if job.status is Status.created:
                job.status = Status.failed


async def _submitted(cluster: Any, n_workers: int) -> None:
    # `scale` alone, which has this done when the loop is idle, would only log that a job was refused.
    cluster.scale(n_workers)
    await cluster._correct_state()


@contextmanager
def _pods(machine: Machine) -> Iterator[Client]:
    pods = pods_of(machine)
    operator = extra("dask_kubernetes.operator", machine.kind)
    try:
        cluster = operator.KubeCluster(
            custom_cluster_spec=cluster_resource(machine),
            namespace=pods.namespace or None,
            resource_timeout=pods.start_timeout,
            # Never a cluster of the same name that another run has started with other settings.
            create_mode=_create_only(machine),
            quiet=True,
        )
    except ConfigError:
        raise
    except Exception as error:  # of several clients of Kubernetes, each with its own kinds
        msg = f"Kubernetes did not start {pods.name!r}: {type(error).__name__}: {' '.join(str(error).split())}"
        remedy = "check kubectl's context, Dask's operator, and `kubectl get daskclusters`"
        raise ConfigError(msg, "a cluster with Dask's operator and no DaskCluster of that name", remedy) from error
    with cluster, Client(cluster) as client:
        _first_worker(client, pods.start_timeout, "look at `kubectl get pods` and their events")
        _adapt(cluster, machine)
        yield client


def _create_only(machine: Machine) -> Any:
    module = extra("dask_kubernetes.operator.kubecluster.kubecluster", machine.kind)
    return module.CreateMode.CREATE_ONLY


def _first_worker(client: Client, within: int, remedy: str) -> None:
    try:
        client.wait_for_workers(1, timeout=within or None)
    except TimeoutError as error:
        msg = f"no worker in {within} s"
        raise ConfigError(msg, "one in the time of start_timeout", remedy) from error


def _adapt(cluster: Any, machine: Machine) -> None:
    if machine.adapt is not None:
        cluster.adapt(minimum=machine.adapt.minimum, maximum=machine.adapt.maximum)


_STARTS = {
    "local": _local,
    "cuda": _cuda,
    "address": _address,
    "slurm": _jobs,
    "pbs": _jobs,
    "kubernetes": _pods,
}


class _Uninterrupted(WorkerPlugin):
    """Workers leave Ctrl-C, which a terminal sends to them as well, to the coordinator, which then ends them."""

    name = "streamfit-uninterrupted"

    def setup(self, worker: Worker) -> None:
        # A worker in a thread of another kind of process cannot, and need not.
        with suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
