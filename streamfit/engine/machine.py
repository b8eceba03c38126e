"""What a machine is: the kind of cluster, its size, and the settings of each kind. Apart from any problem.

Floor 5: imports errors and arrays; plain data, which `cluster_spec` renders and `cluster` starts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import psutil
from dask.utils import parse_bytes

from streamfit.arrays import Backend
from streamfit.errors import ConfigError

Kind = Literal["local", "serial", "address", "cuda", "slurm", "pbs", "kubernetes"]


@dataclass(frozen=True)
class Tls:
    """Certificates with which coordinator, scheduler and workers prove themselves to each other.

    Parameters
    ----------
    ca, cert, key : str
        PEM files: the authority that signed all certificates, this side's certificate, and its private key.
    require_encryption : bool
        Refuse any connection without TLS.
    """

    ca: str
    cert: str
    key: str
    require_encryption: bool = True


@dataclass(frozen=True)
class Adapt:
    """Workers come and go with the work there is.

    Parameters
    ----------
    minimum, maximum : int
        Workers at least and at most. A run is planned for the most.
    """

    minimum: int
    maximum: int


@dataclass(frozen=True)
class Gpus:
    """Settings of dask-cuda's LocalCUDACluster.

    Parameters
    ----------
    devices : tuple of int
        GPUs to use; all without any.
    rmm_pool_size : str
        Device memory that RMM takes at the start and CuPy allocates from, such as '70GB'; '' leaves CuPy its own pool.
    protocol : str
        'tcp' or 'ucx'; '' lets dask-cuda choose.
    """

    devices: tuple[int, ...] = ()
    rmm_pool_size: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class Job:
    """One job of a batch system, and what runs in it; see dask-jobqueue.

    Parameters
    ----------
    cores : int
        Of a job, shared by its processes.
    memory : str
        Of a job, such as '64GB'.
    walltime : str
        After which the batch system ends a job, as it writes it.
    processes : int
        Worker processes in a job.
    queue, account : str
        Partition or queue, and who pays.
    project : str
        PBS Pro's `-P`; not for SLURM, whose `-A` is the account.
    resource_spec : str
        PBS's `-l select=...`, in the place of the one made of cores and memory.
    gpus : int
        0, or 1: a job is one worker with one GPU.
    job_extra_directives, job_directives_skip : tuple of str
        Lines for the head of the script, without `#SBATCH` or `#PBS`, and parts of lines that are to be left out.
    job_script_prologue : tuple of str
        Lines of shell that run before the worker, such as `module load`; streamfit's own environment comes after them.
    worker_extra_args : tuple of str
        Arguments for `dask worker`, such as '--lifetime', '55m'.
    python : str
        Interpreter on the nodes; '' takes this one.
    interface, scheduler_interface : str
        Network interface of workers and scheduler, and another one for the scheduler alone.
    local_directory : str
        Fast scratch of a node.
    log_directory : str
        Where the batch system puts output.
    shebang : str
        First line of the script.
    death_timeout : int
        Seconds after which a worker without a scheduler ends.
    start_timeout : int
        Seconds to wait for the first worker; 0 waits as long as the queue does.
    """

    cores: int
    memory: str
    walltime: str
    processes: int = 1
    queue: str = ""
    account: str = ""
    project: str = ""
    resource_spec: str = ""
    gpus: int = 0
    job_extra_directives: tuple[str, ...] = ()
    job_directives_skip: tuple[str, ...] = ()
    job_script_prologue: tuple[str, ...] = ()
    worker_extra_args: tuple[str, ...] = ()
    python: str = ""
    interface: str = ""
    scheduler_interface: str = ""
    local_directory: str = ""
    log_directory: str = ""
    shebang: str = "#!/usr/bin/env bash"
    death_timeout: int = 120
    start_timeout: int = 0


@dataclass(frozen=True)
class Volume:
    """A persistent volume claim, mounted in every pod.

    Parameters
    ----------
    claim, path : str
        Name of the claim and where it is seen: at the same path as the coordinator sees it.
    read_only : bool
    """

    claim: str
    path: str
    read_only: bool = False


@dataclass(frozen=True)
class Pods:
    """Pods of a Kubernetes cluster that runs Dask's operator; see dask-kubernetes.

    Parameters
    ----------
    image : str
        Has streamfit, at this version.
    limits, requests : dict of str to str
        Of a worker, in Kubernetes' units; cpu and memory at least. Without requests they are the limits.
    name, namespace : str
        Of the DaskCluster; '' takes the namespace of the context.
    scheduler_cpu, scheduler_memory : str
        What the scheduler's pod asks for.
    env : dict of str to str
        More environment, such as credentials' locations.
    volumes : tuple of Volume
    shared_memory : str
        Size of /dev/shm, such as '4Gi'; '' leaves it as it is.
    node_selector : dict of str to str
    tolerations : tuple of dict
        As in a pod's spec.
    image_pull_secrets : tuple of str
    service_account : str
    scheduler_service_type : {'ClusterIP', 'NodePort', 'LoadBalancer'}
    idle_timeout : int
        Seconds without work after which the operator deletes the cluster, should its coordinator have died.
    start_timeout : int
        Seconds to wait for the operator's steps and for the first worker.
    """

    image: str
    limits: dict[str, str]
    requests: dict[str, str] | None = None
    name: str = "streamfit"
    namespace: str = ""
    scheduler_cpu: str = "1"
    scheduler_memory: str = "2Gi"
    env: dict[str, str] | None = None
    volumes: tuple[Volume, ...] = ()
    shared_memory: str = ""
    node_selector: dict[str, str] | None = None
    tolerations: tuple[dict[str, Any], ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    scheduler_service_type: str = "ClusterIP"
    idle_timeout: int = 600
    start_timeout: int = 600


@dataclass(frozen=True)
class Machine:
    """A place to run, apart from the problem that is run there.

    Parameters
    ----------
    kind : {'local', 'serial', 'address', 'cuda', 'slurm', 'pbs', 'kubernetes'}
        Worker processes on this machine, this process alone, a scheduler that runs already, a worker for each GPU of
        this machine, jobs of a batch system, or pods.
    n_workers : int
        Worker processes; 0 takes one a core, or one a GPU.
    threads_per_worker : int
        Threads that multiply tiles in each worker; 0 takes what the cores allow.
    memory_limit : int
        Bytes for each worker; 0 takes what the job or pod has, or shares 80% of what is free here.
    address : str
        Of the scheduler, for kind 'address'.
    backend : {'numpy', 'cuda'}
        Array library of the workers; 'cuda' where the kind, the job or the pods have GPUs.
    interface, local_directory : str
        Network interface and scratch of workers on this machine.
    lost_after : int
        Seconds without any answer after which another host counts as lost and its groups go to others; 11 at least.
    tls : Tls, optional
    adapt : Adapt, optional
    gpu : Gpus, optional
    job : Job, optional
        Needed by 'slurm' and 'pbs'.
    pods : Pods, optional
        Needed by 'kubernetes'.

    Raises
    ------
    ConfigError
        If what the kind needs is not there.
    """

    kind: Kind = "local"
    n_workers: int = 0
    threads_per_worker: int = 0
    memory_limit: int = 0
    address: str = ""
    backend: Backend = "numpy"
    interface: str = ""
    local_directory: str = ""
    lost_after: int = 30
    tls: Tls | None = None
    adapt: Adapt | None = None
    gpu: Gpus | None = None
    job: Job | None = None
    pods: Pods | None = None

    def __post_init__(self) -> None:
        needs = {"slurm": "job", "pbs": "job", "kubernetes": "pods", "address": "address"}.get(self.kind)
        if needs and not getattr(self, needs):
            msg = f"a machine of kind {self.kind!r} without {needs!r}"
            raise ConfigError(msg, f"its {needs}", f"see configs/machine_{self.kind}.toml")
        if self._has_gpus:
            object.__setattr__(self, "backend", "cuda")

    @property
    def _has_gpus(self) -> bool:
        asked = self.job is not None and self.job.gpus > 0
        return self.kind == "cuda" or asked or (self.pods is not None and "nvidia.com/gpu" in self.pods.limits)

    @property
    def on_this_host(self) -> bool:
        """Whether workers share this host's memory and its terminal."""
        return self.kind in ("local", "serial", "cuda")

    @property
    def solve_backend(self) -> Backend:
        """Where this process factors matrices: on a GPU only if the workers' GPUs are this host's."""
        return "cuda" if self.kind == "cuda" else "numpy"

    @property
    def workers(self) -> int:
        """Worker processes at most."""
        if self.kind == "serial":
            return 1
        if self.adapt is not None:
            return self.adapt.maximum
        if self.kind == "cuda":
            return self.n_workers or n_gpus(self.gpu or Gpus())
        return self.n_workers or (cores() if self.kind == "local" else 1)

    @property
    def threads(self) -> int:
        """Threads a worker."""
        if self.threads_per_worker:
            return self.threads_per_worker
        if self.job is not None:
            return max(1, self.job.cores // self.job.processes)
        if self.pods is not None:
            return max(1, int(_cpus(self.pods.limits["cpu"])))
        return max(1, cores() // self.workers) if self.kind in ("local", "serial") else 1

    @property
    def worker_memory(self) -> int | None:
        """Bytes for each worker; None where only the workers of the scheduler's know."""
        if self.memory_limit:
            return self.memory_limit
        if self.job is not None:
            return int(parse_bytes(self.job.memory)) // self.job.processes
        if self.pods is not None:
            return int(parse_bytes(self.pods.limits["memory"]))
        if self.kind == "address":
            return None
        return int(0.8 * psutil.virtual_memory().available) // self.workers

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults, as a configuration that gives this machine again."""
        changed = _changed(self)
        if self._has_gpus:
            del changed["backend"]  # it follows
        return {"kind": self.kind} | changed


def _changed(settings: Any) -> dict[str, Any]:
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if getattr(settings, f.name) != f.default}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return _changed(value) if is_dataclass(value) else value


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_gpus(gpu: Gpus) -> int:
    """GPUs that are named, in the settings or by CUDA_VISIBLE_DEVICES, or else seen; 1 where there are none."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return len(gpu.devices) or len([d for d in named.split(",") if d]) or len([*Path("/dev").glob("nvidia[0-9]*")]) or 1


def _cpus(quantity: str) -> float:
    """Kubernetes' quantity of cpu: '4', '0.5' or '500m'."""
    return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)
