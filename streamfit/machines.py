"""Configurations of machines: a section for each kind of cluster, with the keys that have an effect there.

Floor 7. A key that belongs to another kind is an error that says to which.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dask.utils import parse_bytes
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from streamfit.arrays import Backend
from streamfit.engine import Machine
from streamfit.engine.machine import Adapt, Gpus, Job, Pods, Tls, Volume
from streamfit.errors import ConfigError
from streamfit.sections import Count, Section, checked, read


def _bytes(given: str) -> str:
    try:
        size = parse_bytes(given)
    except ValueError:
        size = 0
    if size <= 0:
        msg = "a size such as '64GB' or '8Gi'"
        raise ValueError(msg)
    return given


def _memory(given: Any) -> Any:
    """Bytes of a size as Dask writes it; whole numbers are bytes already."""
    if not isinstance(given, str):
        return given
    if given == "auto":
        return 0
    try:
        return parse_bytes(given)
    except ValueError as error:
        msg = "bytes, or a size such as '2GB' or '8GiB'; 0 for this machine's share"
        raise ValueError(msg) from error


def _one_line(given: str) -> str:
    if "\n" in given or "\r" in given:
        msg = "one line; several are several items of the list"
        raise ValueError(msg)
    return given


def _word(given: str) -> str:
    if re.search(r"\s", given):
        msg = "no blanks, for it becomes part of a command line"
        raise ValueError(msg)
    return given


def _path(given: str) -> str:
    """A path that holds from any directory, as `resume` needs it."""
    return str(Path(given).expanduser().absolute())


Whole = Annotated[int, Field(ge=0)]
_MEMORY_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string"}], "default": 0}
Memory = Annotated[Whole, BeforeValidator(_memory), WithJsonSchema(_MEMORY_SCHEMA)]
Silence = Annotated[int, Field(ge=11)]  # Dask divides it into ten probes and a wait
Size = Annotated[str, AfterValidator(_bytes)]
Line = Annotated[str, AfterValidator(_one_line)]
Word = Annotated[str, AfterValidator(_word)]
File = Annotated[str, Field(min_length=1), AfterValidator(_path)]
Walltime = Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d{1,2}){0,2}$")]
Cpu = Annotated[str, Field(pattern=r"^(\d+(\.\d+)?|\d+m)$")]


class TlsSection(Section):
    """See `streamfit.engine.machine.Tls`."""

    ca: File
    cert: File
    key: File
    require_encryption: bool = True


class AdaptSection(Section):
    """See `streamfit.engine.machine.Adapt`."""

    minimum: Count
    maximum: Count

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            msg = f"minimum {self.minimum} is above maximum {self.maximum}"
            raise ValueError(msg)
        return self


class GpuSection(Section):
    """See `streamfit.engine.machine.Gpus`."""

    devices: tuple[Whole, ...] = ()
    rmm_pool_size: Size | Literal[""] = ""
    protocol: Literal["", "tcp", "ucx"] = ""


class JobSection(Section):
    """A job of SLURM; see `streamfit.engine.machine.Job`."""

    cores: Count
    memory: Size
    walltime: Walltime
    processes: Count = 1
    queue: Word = ""
    account: Word = ""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    job_extra_directives: tuple[Line, ...] = ()
    job_directives_skip: tuple[Line, ...] = ()
    job_script_prologue: tuple[Line, ...] = ()
    worker_extra_args: tuple[Word, ...] = ()
    python: Word = ""
    interface: Word = ""
    scheduler_interface: Word = ""
    local_directory: Word = ""
    log_directory: Word = ""
    shebang: Line = "#!/usr/bin/env bash"
    death_timeout: Count = 120
    start_timeout: Whole = 0

    @field_validator("processes")
    @classmethod
    def _a_core_each(cls, given: int, info: ValidationInfo) -> int:
        if given > info.data.get("cores", given):
            msg = f"more processes than the job's {info.data['cores']} cores"
            raise ValueError(msg)
        return given

    @field_validator("worker_extra_args")
    @classmethod
    def _ours_are_kept(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for argument in given:
            if argument.partition("=")[0] in ("--nthreads", "--nworkers", "--memory-limit", "--name"):
                msg = f"{argument!r} follows from cores, processes and memory, which the plan counts on"
                raise ValueError(msg)
        return given

    @model_validator(mode="after")
    def _a_gpu_is_one_worker(self) -> Self:
        if self.gpus and self.processes != 1:
            msg = "a job with a GPU is one worker: processes = 1, and as many jobs as GPUs"
            raise ValueError(msg)
        return self


class PbsJobSection(JobSection):
    """A job of PBS; see `streamfit.engine.machine.Job`."""

    project: Word = ""
    resource_spec: Word = ""

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if self.resource_spec and self.gpus:
            msg = "gpus has no effect beside a resource_spec: write ngpus=1 into it"
            raise ValueError(msg)
        return self


class VolumeSection(Section):
    """See `streamfit.engine.machine.Volume`."""

    claim: Annotated[str, Field(min_length=1)]
    path: Annotated[str, Field(pattern="^/")]
    read_only: bool = False


class PodsSection(Section):
    """See `streamfit.engine.machine.Pods`."""

    image: Annotated[str, Field(min_length=1)]
    limits: dict[str, str]
    requests: dict[str, str] | None = None
    name: Annotated[str, Field(pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=44)] = "streamfit"
    namespace: Word = ""
    scheduler_cpu: Cpu = "1"
    scheduler_memory: Size = "2Gi"
    env: dict[str, str] | None = None
    volumes: tuple[VolumeSection, ...] = ()
    shared_memory: Size | Literal[""] = ""
    node_selector: dict[str, str] | None = None
    tolerations: tuple[dict[str, Any], ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str = ""
    scheduler_service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    idle_timeout: Count = 600
    start_timeout: Count = 600

    @field_validator("limits", "requests")
    @classmethod
    def _quantities(cls, given: dict[str, str] | None, info: ValidationInfo) -> dict[str, str] | None:
        if given is None:
            return None
        if info.field_name == "limits" and not {"cpu", "memory"} <= set(given):
            msg = f"cpu and memory, which the plan counts on; there is {', '.join(sorted(given)) or 'nothing'}"
            raise ValueError(msg)
        if not re.fullmatch(r"\d+(\.\d+)?|\d+m", given.get("cpu", "1")):
            msg = f"cpu {given['cpu']!r}: such as '4' or '500m'"
            raise ValueError(msg)
        _bytes(given.get("memory", "1"))
        return given


class _Sized(Section):
    n_workers: Whole = 0
    adapt: AdaptSection | None = None

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.adapt is not None and self.n_workers:
            msg = "n_workers has no effect beside [adapt]"
            raise ValueError(msg)
        return self


class SerialMachine(Section):
    """No cluster: this process alone."""

    kind: Literal["serial"]
    threads_per_worker: Whole = 0
    memory_limit: Memory = 0
    backend: Backend = "numpy"


class LocalMachine(_Sized):
    """Worker processes on this machine."""

    kind: Literal["local"] = "local"
    threads_per_worker: Whole = 0
    memory_limit: Memory = 0
    backend: Backend = "numpy"
    interface: Word = ""
    local_directory: str = ""


class CudaMachine(Section):
    """A worker for each GPU of this machine."""

    kind: Literal["cuda"]
    n_workers: Whole = 0
    memory_limit: Memory = 0
    interface: Word = ""
    local_directory: str = ""
    gpu: GpuSection = GpuSection()

    @model_validator(mode="after")
    def _devices_for_all(self) -> Self:
        if self.gpu.devices and self.n_workers > len(self.gpu.devices):
            msg = f"{self.n_workers} workers for {len(self.gpu.devices)} devices"
            raise ValueError(msg)
        return self


class AddressMachine(Section):
    """A scheduler that runs already."""

    kind: Literal["address"]
    address: Annotated[str, Field(pattern=r"^(tcp|tls|ucx|ws|wss)://.+:\d+$")]
    threads_per_worker: Whole = 0
    memory_limit: Memory = 0
    backend: Backend = "numpy"
    lost_after: Silence = 30
    tls: TlsSection | None = None

    @model_validator(mode="after")
    def _certificates_are_used(self) -> Self:
        if self.tls is not None and not self.address.startswith(("tls://", "wss://")):
            msg = f"certificates have no effect for {self.address!r}, which is not tls://"
            raise ValueError(msg)
        return self


class _Remote(_Sized):
    lost_after: Silence = 30

    @model_validator(mode="after")
    def _some_size(self) -> Self:
        if self.adapt is None and not self.n_workers:
            msg = "how many workers? n_workers, or [adapt] with a minimum and a maximum"
            raise ValueError(msg)
        return self


class SlurmMachine(_Remote):
    """Jobs of SLURM."""

    kind: Literal["slurm"]
    tls: TlsSection | None = None
    job: JobSection

    @model_validator(mode="after")
    def _whole_jobs(self) -> Self:
        sizes = (self.n_workers,) if self.adapt is None else (self.adapt.minimum, self.adapt.maximum)
        if any(size % self.job.processes for size in sizes):
            msg = f"workers {', '.join(map(str, sizes))}: whole jobs of {self.job.processes} processes each"
            raise ValueError(msg)
        return self


class PbsMachine(SlurmMachine):
    """Jobs of PBS."""

    kind: Literal["pbs"]  # type: ignore[assignment]
    job: PbsJobSection


class KubernetesMachine(_Remote):
    """Pods of a Kubernetes cluster."""

    kind: Literal["kubernetes"]
    pods: PodsSection


MACHINES: dict[str, type[Section]] = {
    "local": LocalMachine,
    "serial": SerialMachine,
    "address": AddressMachine,
    "cuda": CudaMachine,
    "slurm": SlurmMachine,
    "pbs": PbsMachine,
    "kubernetes": KubernetesMachine,
}


def load_machine(path: str | Path | None) -> Machine:
    """Read a machine from TOML; without a path, this machine with a worker a core.

    Raises
    ------
    ConfigError
        If the file is missing, not TOML, or not a valid machine.
    """
    if path is None:
        return Machine()
    data = read(path)
    if Path(path).suffix == ".json":  # what earlier versions kept of a run names every key, those without a value too
        data = {key: value for key, value in data.items() if value not in (0, "", None)}
    kind = data.get("kind", "local")
    if kind not in MACHINES:
        near = difflib.get_close_matches(str(kind), MACHINES, n=1)
        msg = f"{path}: kind = {kind!r}"
        raise ConfigError(msg, f"one of {', '.join(MACHINES)}", f"did you mean {near[0]!r}?" if near else "")
    _refuse_of_other_kinds(path, kind, data)
    given = checked(path, MACHINES[kind], data).model_dump()
    made: dict[str, Any] = {"tls": Tls, "adapt": Adapt, "gpu": Gpus, "job": Job, "pods": _made_pods}
    for name, make in made.items():
        if given.get(name) is not None:
            given[name] = make(**given[name])
    return Machine(**given)


def _made_pods(volumes: tuple[dict[str, Any], ...], **rest: Any) -> Pods:
    return Pods(**rest, volumes=tuple(Volume(**volume) for volume in volumes))


def _refuse_of_other_kinds(path: str | Path, kind: str, data: dict[str, Any]) -> None:
    """Name the kinds that a key belongs to; a key that none has is left to `checked`."""
    for place, given, part in (("", data, None), ("job.", data.get("job"), "job")):
        own = _keys(kind, part)
        for key in given if isinstance(given, dict) and own else ():
            others = [other for other in MACHINES if key in _keys(other, part)]
            if key not in own and others:
                msg = f"{path}: {place}{key} has no effect for kind {kind!r}, only for {', '.join(others)}"
                raise ConfigError(msg, f"one of {', '.join(sorted(own))}")


def _keys(kind: str, part: str | None) -> set[str]:
    section = MACHINES[kind].model_fields
    if part is None:
        return set(section)
    return set(section[part].annotation.model_fields) if part in section else set()  # type: ignore[union-attr]
