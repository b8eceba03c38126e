"""What a machine asks of its cluster, without asking: environment, Dask settings, job script, pods, arguments.

Floor 5: imports machine and errors; pure functions of a Machine, which `cluster` hands on unchanged. dask-jobqueue and
dask-kubernetes are imported where they are needed, for they are optional.
"""

from __future__ import annotations

import importlib
import json
import logging
import shlex
from typing import Any

from dask.utils import parse_bytes
from distributed.security import Security

from streamfit.arrays import DEVICE_LIBRARY
from streamfit.engine.machine import Gpus, Job, Machine, Pods, Tls
from streamfit.errors import ConfigError

_BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_COMMANDS = {"slurm": ("SLURM", "sbatch", "squeue"), "pbs": ("PBS", "qsub", "qstat")}
_SCHEDULER = "<scheduler>"
_DASHBOARD = "127.0.0.1:0"
_SILENT_SECONDS = 300
"""A worker that its host answers for, but that does not beat, is given up after this: its process has stopped."""

_PURGE_DELAY = "10000"
"""Milliseconds for which Arrow keeps memory that it has freed: longer than it takes to decode a row group."""


def environment() -> dict[str, str]:
    """Variables of every worker process.

    Products run on one BLAS thread each and tiles in parallel: OpenBLAS rounds differently with other thread counts,
    and sums must not depend on how many workers share the cores.
    """
    environ = dict.fromkeys(_BLAS_VARIABLES, "1") | {"TOKENIZERS_PARALLELISM": "false"}
    # Blocks of tens of megabytes come and go; giving each back to the system costs a page fault for every 4 kB.
    environ |= dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(2**28))
    environ["MALLOC_ARENA_MAX"] = "1"  # threads come and go with each group, and take what others freed
    return environ | {"MIMALLOC_PURGE_DELAY": _PURGE_DELAY}  # the same for what Arrow decodes


def settings(machine: Machine) -> dict[str, Any]:
    """Dask's settings of coordinator, scheduler and workers."""
    chosen: dict[str, Any] = {
        "distributed.comm.timeouts.connect": "60s",
        # A group's task holds the interpreter for long stretches inside BLAS; that is not a fault.
        "distributed.admin.tick.limit": "60s",
        "distributed.scheduler.allowed-failures": 5,
    }
    # The plan bounds memory before the run; spilling or pausing in the middle would only hide a mistake.
    chosen |= {f"distributed.worker.memory.{act}": False for act in ("target", "spill", "pause")}
    if machine.on_this_host:
        chosen |= {"distributed.nanny.pre-spawn-environ": environment(), "distributed.worker.daemon": True}
    else:
        # A host that is cut off answers nothing, not even that it is gone: its connection counts as dead after this
        # long, and its groups go to others.
        silent = max(_SILENT_SECONDS, machine.lost_after)
        chosen |= {
            "distributed.comm.timeouts.tcp": f"{machine.lost_after}s",
            "distributed.scheduler.worker-ttl": f"{silent}s",
        }
        if machine.adapt is None:
            # Nobody starts workers again that are all gone; a run that waited for them would wait for ever.
            chosen["distributed.scheduler.no-workers-timeout"] = "10 minutes"
    if machine.adapt is not None:
        # Groups are cut to about a minute; Dask's own guess of half a second would ask for one worker for ten of them.
        chosen["distributed.scheduler.unknown-task-duration"] = "60s"
    return chosen


def remote_environment(machine: Machine) -> dict[str, str]:
    """Environment of processes that are not children of this one: Dask's settings go with it as DASK_ variables."""
    dask = {
        "DASK_" + name.upper().replace(".", "__").replace("-", "_"): str(value)
        for name, value in settings(machine).items()
    }
    return environment() | dask


def security(tls: Tls | None) -> Security | None:
    """Dask's form of the certificates, one for every role."""
    if tls is None:
        return None
    roles = {f"tls_{role}_{part}": getattr(tls, part) for role in _ROLES for part in ("cert", "key")}
    return Security(tls_ca_file=tls.ca, require_encryption=tls.require_encryption, **roles)


_ROLES = ("client", "scheduler", "worker")


def local_arguments(machine: Machine) -> dict[str, Any]:
    """Arguments of LocalCluster, and those that LocalCUDACluster hands on to it."""
    return {
        "n_workers": machine.workers if machine.adapt is None else machine.adapt.minimum,
        "threads_per_worker": 1,
        "processes": True,
        "memory_limit": machine.worker_memory,
        "dashboard_address": _DASHBOARD,
        # Faults of tasks come back as results; what is left at this level is heartbeats of an end, as at Ctrl-C.
        "silence_logs": logging.CRITICAL,
        "interface": machine.interface or None,
        "local_directory": machine.local_directory or None,
    }


def cuda_arguments(machine: Machine) -> dict[str, Any]:
    """Arguments of dask-cuda's LocalCUDACluster: one worker process a GPU."""
    gpu = machine.gpu or Gpus()
    chosen = local_arguments(machine)
    chosen["CUDA_VISIBLE_DEVICES"] = [*gpu.devices] or None
    # Nothing that Dask keeps lies on the device: sums go to the host before they are written.
    chosen["device_memory_limit"] = None
    chosen["protocol"] = gpu.protocol or None
    if gpu.rmm_pool_size:
        chosen |= {"rmm_pool_size": gpu.rmm_pool_size, "rmm_allocator_external_lib_list": [DEVICE_LIBRARY]}
    return chosen


def job_arguments(machine: Machine) -> dict[str, Any]:
    """Arguments of dask-jobqueue's SLURMCluster or PBSCluster that describe a job."""
    job = job_of(machine)
    # dask-jobqueue gives a worker cores / processes threads, each of which would take a task of its own; here a task
    # uses all of a worker's cores. So it is told of one core a process, and the batch system of all of them.
    chosen: dict[str, Any] = {
        "cores": job.processes,
        "memory": job.memory,
        "processes": job.processes,
        "walltime": job.walltime,
        "queue": job.queue or None,
        "account": job.account or None,
        "python": job.python or None,
        "interface": job.interface or None,
        "local_directory": job.local_directory or None,
        "shebang": job.shebang,
        "death_timeout": job.death_timeout,
        "job_name": "streamfit",
        "job_directives_skip": [*job.job_directives_skip],
        "job_extra_directives": [*_directives(machine.kind, job), *job.job_extra_directives],
        # The last word is ours: a module that is loaded may set the number of BLAS threads.
        "job_script_prologue": [
            *job.job_script_prologue,
            *(f"export {name}={shlex.quote(value)}" for name, value in remote_environment(machine).items()),
        ],
        "worker_extra_args": [*job.worker_extra_args],
    }
    if machine.kind == "slurm":
        return chosen | {"job_cpu": job.cores}
    return chosen | {"resource_spec": job.resource_spec or _select(job)}


def _directives(kind: str, job: Job) -> list[str]:
    lines = []
    if job.log_directory:
        slurm = [f"-{letter} {job.log_directory}/streamfit-%j.{name}" for letter, name in (("o", "out"), ("e", "err"))]
        lines += slurm if kind == "slurm" else [f"-o {job.log_directory}/", f"-e {job.log_directory}/"]
    if job.project:
        lines.append(f"-P {job.project}")
    if job.gpus and kind == "slurm":
        lines.append(f"--gres=gpu:{job.gpus}")
    return lines


def _select(job: Job) -> str:
    mebibytes = -(-int(parse_bytes(job.memory)) // 2**20)
    return f"select=1:ncpus={job.cores}:mem={mebibytes}MB" + (f":ngpus={job.gpus}" if job.gpus else "")


def job_script(machine: Machine, address: str = "", name: str = "<worker>") -> str:
    """The script that is submitted for each job, but for the scheduler's address and the worker's name.

    Raises
    ------
    ConfigError
        If dask-jobqueue is not installed.
    """
    system = _COMMANDS[machine.kind][0]
    job_class = getattr(extra(f"dask_jobqueue.{machine.kind}", machine.kind), f"{system}Job")
    protocol = "tls" if machine.tls else "tcp"
    more = {"protocol": "tls://", "security": security(machine.tls)} if machine.tls else {}
    job = job_class(address or f"{protocol}://{_SCHEDULER}:8786", name=name, **job_arguments(machine), **more)
    return str(job.job_script())


def submit_commands(machine: Machine) -> tuple[str, str]:
    """Commands that submit a job and list the queue."""
    return _COMMANDS[machine.kind][1:]


def cluster_resource(machine: Machine) -> dict[str, Any]:
    """The DaskCluster that Dask's Kubernetes operator makes pods of.

    Raises
    ------
    ConfigError
        If dask-kubernetes is not installed.
    """
    pods = pods_of(machine)
    make = extra("dask_kubernetes.operator.kubecluster.kubecluster", machine.kind).make_cluster_spec
    limits, requests = dict(pods.limits), dict(pods.requests or pods.limits)
    memory = str(machine.worker_memory)
    resource: dict[str, Any] = make(
        name=pods.name,
        image=pods.image,
        n_workers=machine.workers if machine.adapt is None else machine.adapt.minimum,
        resources={"limits": limits, "requests": requests},
        env=remote_environment(machine) | (pods.env or {}) | environment(),
        worker_command=["dask-worker", "--nthreads", "1", "--memory-limit", memory],
        scheduler_service_type=pods.scheduler_service_type,
        idle_timeout=pods.idle_timeout,
    )
    worker, scheduler = (resource["spec"][role]["spec"] for role in ("worker", "scheduler"))
    asked = {"cpu": pods.scheduler_cpu, "memory": pods.scheduler_memory}
    scheduler["containers"][0]["resources"] = {"requests": asked, "limits": {"memory": pods.scheduler_memory}}
    _mount(worker, pods)
    for spec in (worker, scheduler):
        if pods.image_pull_secrets:
            spec["imagePullSecrets"] = [{"name": name} for name in pods.image_pull_secrets]
        if pods.service_account:
            spec["serviceAccountName"] = pods.service_account
    if pods.node_selector:
        worker["nodeSelector"] = dict(pods.node_selector)
    if pods.tolerations:
        worker["tolerations"] = [dict(each) for each in pods.tolerations]
    return resource


def _mount(spec: dict[str, Any], pods: Pods) -> None:
    volumes, mounts = [], []
    for i, volume in enumerate(pods.volumes):
        claim = {"claimName": volume.claim, "readOnly": volume.read_only}
        volumes.append({"name": f"volume-{i}", "persistentVolumeClaim": claim})
        mounts.append({"name": f"volume-{i}", "mountPath": volume.path, "readOnly": volume.read_only})
    if pods.shared_memory:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
    if volumes:
        spec["volumes"] = volumes
        spec["containers"][0]["volumeMounts"] = mounts


def rendered(machine: Machine) -> dict[str, Any]:
    """What would be submitted or started, and the figures that a run is planned with.

    Returns
    -------
    dict
        `kind`, `workers`, `threads`, `worker_memory`, `backend`, and one of `job_script`, `cluster_resource`,
        `arguments` or `commands`.
    """
    facts: dict[str, Any] = {
        "kind": machine.kind,
        "workers": None if machine.kind == "address" else machine.workers,
        "threads": machine.threads,
        "worker_memory": machine.worker_memory,
        "backend": machine.backend,
    }
    if machine.adapt is not None:
        facts["adapt"] = {"minimum": machine.adapt.minimum, "maximum": machine.adapt.maximum}
    if machine.job is not None:
        return facts | {"job_script": job_script(machine)}
    if machine.pods is not None:
        return facts | {"cluster_resource": cluster_resource(machine)}
    if machine.kind == "address":
        return facts | {"commands": worker_commands(machine)}
    if machine.kind == "serial":
        return facts
    make = cuda_arguments if machine.kind == "cuda" else local_arguments
    return facts | {"arguments": make(machine), "environment": environment()}


def worker_commands(machine: Machine) -> str:
    """Lines of shell that start a scheduler and a worker for an address, with the environment that both need."""
    certificates = ""
    if machine.tls is not None:
        tls = machine.tls
        certificates = f" --tls-ca-file {tls.ca} --tls-cert {tls.cert} --tls-key {tls.key}"
    lines = [f"export {name}={shlex.quote(value)}" for name, value in remote_environment(machine).items()]
    port = machine.address.rpartition(":")[2]
    protocol = machine.address.partition("://")[0]
    limit = str(machine.memory_limit) if machine.memory_limit else "auto"
    worker = "dask cuda worker" if machine.backend == "cuda" else "dask worker"
    return "\n".join(
        (
            *lines,
            f"dask scheduler --protocol {protocol} --port {port}{certificates}",
            f"{worker} {machine.address} --nthreads 1 --memory-limit {limit}{certificates}",
        )
    )


def text(machine: Machine) -> str:
    """The part of `rendered` that is submitted or typed, as a file would hold it."""
    facts = rendered(machine)
    for name in ("job_script", "commands"):
        if name in facts:
            return str(facts[name])
    what = facts.get("cluster_resource") or facts.get("arguments")
    return json.dumps(what, indent=1) if what else "no cluster: tasks run one after another in this process"


def extra(module: str, kind: str) -> Any:
    """A module of an optional dependency.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        group = "cuda" if kind == "cuda" else "cluster"
        msg = f"a machine of kind {kind!r} without {package}: {error}"
        raise ConfigError(msg, f"{package} installed", f"pip install 'streamfit[{group}]'") from error


def job_of(machine: Machine) -> Job:
    """The job of a machine of a kind that cannot be made without one."""
    if machine.job is None:
        raise TypeError(machine.kind)
    return machine.job


def pods_of(machine: Machine) -> Pods:
    """The pods of a machine of a kind that cannot be made without them."""
    if machine.pods is None:
        raise TypeError(machine.kind)
    return machine.pods
