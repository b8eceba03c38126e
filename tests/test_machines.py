"""Machines of every kind: shipped files render to what their cluster takes, and a key without effect is refused."""

from __future__ import annotations

import json
import shlex
from inspect import signature
from pathlib import Path

import pytest
from dask.utils import parse_bytes
from distributed import LocalCluster, Nanny
from test_cli import streamfit

from streamfit.engine import Machine, rendered
from streamfit.engine.cluster_spec import environment, remote_environment
from streamfit.engine.machine import Adapt, Job, Tls
from streamfit.errors import ConfigError
from streamfit.machines import load_machine

CONFIGS = Path(__file__).parent.parent / "configs"
JOB = "[job]\ncores = 8\nmemory = '16GB'\nwalltime = '01:00:00'\nprocesses = 2\n"
PODS = "[pods]\nimage = 'i'\nlimits = {cpu = '2', memory = '4Gi'}\n"

# Of LocalCUDACluster in dask-cuda 26.10, which cannot be imported without CUDA; others go on to LocalCluster.
CUDA_PARAMETERS = {
    "CUDA_VISIBLE_DEVICES",
    "n_workers",
    "threads_per_worker",
    "memory_limit",
    "device_memory_limit",
    "enable_cudf_spill",
    "cudf_spill_stats",
    "local_directory",
    "protocol",
    "enable_tcp_over_ucx",
    "enable_infiniband",
    "enable_nvlink",
    "enable_rdmacm",
    "rmm_pool_size",
    "rmm_maximum_pool_size",
    "rmm_managed_memory",
    "rmm_async",
    "rmm_allocator_external_lib_list",
    "rmm_release_threshold",
    "rmm_log_directory",
    "rmm_track_allocations",
    "log_spilling",
    "pre_import",
}


def machine(tmp_path: Path, text: str) -> Machine:
    path = tmp_path / "m.toml"
    path.write_text(text)
    return load_machine(path)


def shipped(kind: str) -> dict:
    """What the command prints for a shipped file."""
    done = streamfit("machine", CONFIGS / f"machine_{kind}.toml", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def exported(script: str) -> dict[str, str]:
    """Variables that a script's last lines set; a later one wins."""
    lines = [line.removeprefix("export ") for line in script.splitlines() if line.startswith("export ")]
    return {name: shlex.split(value)[0] for name, _, value in (line.partition("=") for line in lines)}


def arguments_of(script: str) -> dict[str, str]:
    """The worker's options."""
    words = shlex.split(script.strip().splitlines()[-1])
    return {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}


def test_a_job_of_slurm():
    facts = shipped("slurm")
    script = facts["job_script"]
    head = {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert {"-p standard", "-A my-project", "--cpus-per-task=16", "--mem=60G", "-t 04:00:00", "--requeue"} <= head
    assert {"-o logs/streamfit-%j.out", "-n 1", "--constraint=ib"} <= head
    assert script.startswith("#!/usr/bin/env bash\n")
    assert exported(script).items() >= environment().items()
    assert exported(script) == remote_environment(load_machine(CONFIGS / "machine_slurm.toml"))
    assert script.index("module load") < script.index("export OMP_NUM_THREADS=1"), "no module has the last word"
    options = arguments_of(script)
    # One task at a time in each worker: the plan counts on its memory, which four of them share.
    assert (options["--nthreads"], options["--nworkers"], options["--memory-limit"]) == ("1", "4", "14.90GiB")
    assert (options["--interface"], options["--local-directory"]) == ("ib0", "$TMPDIR")
    assert (facts["threads"], facts["worker_memory"], facts["workers"]) == (4, 16 * 10**9, 64)
    assert not Path("logs").exists(), "showing a script makes no folder"


def test_a_job_of_pbs():
    facts = shipped("pbs")
    script = facts["job_script"]
    head = {line.removeprefix("#PBS ") for line in script.splitlines() if line.startswith("#PBS")}
    wanted = {"-q normal", "-A UABC0001", "-l walltime=06:00:00", "-l select=1:ncpus=24:mem=91553MB", "-j oe"}
    assert head == wanted | {"-N streamfit", "-o logs/", "-e logs/"}
    assert exported(script).items() >= environment().items()
    assert (facts["threads"], facts["worker_memory"], facts["workers"]) == (6, 24 * 10**9, 32)


def test_gpus_and_projects_and_certificates_reach_jobs(tmp_path: Path):
    job = JOB.replace("processes = 2", "processes = 1\ngpus = 1")
    slurm = machine(tmp_path, f"kind = 'slurm'\nn_workers = 3\n{job}")
    assert slurm.backend == "cuda"
    assert "#SBATCH --gres=gpu:1\n" in rendered(slurm)["job_script"]
    pbs = machine(tmp_path, f"kind = 'pbs'\nn_workers = 3\n{job}project = 'p1'\n")
    assert "ncpus=8:mem=15259MB:ngpus=1\n" in rendered(pbs)["job_script"]
    assert "#PBS -P p1\n" in rendered(pbs)["job_script"]
    asked = machine(tmp_path, f"kind = 'pbs'\nn_workers = 2\n{JOB}resource_spec = 'select=1:ncpus=8:mem=17gb'\n")
    assert "#PBS -l select=1:ncpus=8:mem=17gb\n" in rendered(asked)["job_script"]
    secret = machine(
        tmp_path, f"kind = 'slurm'\nn_workers = 2\n{JOB}[tls]\nca = '/c/ca'\ncert = '/c/cert'\nkey = '/c/key'\n"
    )
    script = rendered(secret)["job_script"]
    assert " tls://<scheduler>:8786 " in script
    options = arguments_of(script.replace("<", "").replace(">", ""))
    assert [options[f"--{name}"] for name in ("tls-ca-file", "tls-cert", "tls-key", "protocol")] == [
        "/c/ca",
        "/c/cert",
        "/c/key",
        "tls://",
    ]


def test_pods_of_kubernetes():
    pytest.importorskip("dask_kubernetes", reason="an optional extra of 29 packages; install streamfit[cluster]")
    facts = shipped("kubernetes")
    resource = facts["cluster_resource"]
    assert (resource["kind"], resource["metadata"]["name"], resource["spec"]["idleTimeout"]) == (
        "DaskCluster",
        "streamfit",
        900,
    )
    assert resource["spec"]["worker"]["replicas"] == 2
    worker, scheduler = (resource["spec"][role]["spec"] for role in ("worker", "scheduler"))
    pod = worker["containers"][0]
    variables = {each["name"]: each["value"] for each in pod["env"]}
    assert variables.items() >= (environment() | {"AWS_REGION": "eu-central-1"}).items()
    assert variables["DASK_DISTRIBUTED__WORKER__MEMORY__SPILL"] == "False"
    assert pod["resources"]["limits"] == {"cpu": "8", "memory": "32Gi"}
    assert pod["resources"]["requests"]["memory"] == "24Gi"
    options = dict(zip(pod["args"][1::2], pod["args"][2::2], strict=False))
    assert (options["--nthreads"], options["--memory-limit"]) == ("1", str(32 * 2**30))
    mounted = {each["mountPath"] for each in pod["volumeMounts"]}
    assert mounted == {"/data", "/dev/shm"}
    assert {each["name"] for each in worker["volumes"]} == {each["name"] for each in pod["volumeMounts"]}
    assert (worker["nodeSelector"], worker["tolerations"][0]["value"]) == ({"pool": "compute"}, "compute")
    assert worker["serviceAccountName"] == scheduler["serviceAccountName"] == "streamfit"
    assert scheduler["containers"][0]["resources"]["limits"] == {"memory": "2Gi"}
    assert (facts["threads"], facts["worker_memory"], facts["workers"]) == (8, 32 * 2**30, 32)


def test_pods_with_gpus(tmp_path: Path):
    pytest.importorskip("dask_kubernetes", reason="an optional extra of 29 packages; install streamfit[cluster]")
    text = f"kind = 'kubernetes'\nn_workers = 2\n{PODS}".replace("'4Gi'", "'4Gi', 'nvidia.com/gpu' = '1'")
    chosen = machine(tmp_path, text)
    spec = rendered(chosen)["cluster_resource"]["spec"]
    assert chosen.backend == "cuda"
    assert spec["worker"]["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in json.dumps(spec["scheduler"]), "the scheduler needs none"


def test_arguments_of_clusters_on_this_machine(tmp_path: Path):
    # LocalCluster hands what it does not know itself to each worker's nanny.
    local = set(signature(LocalCluster).parameters) | set(signature(Nanny).parameters)
    assert set(shipped("local")["arguments"]) <= local
    text = "kind = 'cuda'\n[gpu]\ndevices = [0, 2]\nrmm_pool_size = '8GB'\nprotocol = 'tcp'\n"
    chosen = machine(tmp_path, text)
    facts = rendered(chosen)
    assert set(facts["arguments"]) <= CUDA_PARAMETERS | local
    assert (facts["arguments"]["n_workers"], facts["arguments"]["CUDA_VISIBLE_DEVICES"]) == (2, [0, 2])
    assert facts["arguments"]["rmm_allocator_external_lib_list"] == ["cupy"]
    assert (chosen.backend, facts["environment"]) == ("cuda", environment())


def test_an_address_shows_what_to_start():
    facts = shipped("address")
    assert facts["workers"] is None
    assert exported(facts["commands"]).items() >= environment().items()
    scheduler, worker = facts["commands"].splitlines()[-2:]
    assert scheduler.startswith("dask scheduler --protocol tls --port 8786 --tls-ca-file /")
    assert worker.startswith("dask worker tls://scheduler.example.org:8786 --nthreads 1 ")


def test_when_hosts_count_as_lost(tmp_path: Path):
    def told(more: str) -> tuple[str | None, ...]:
        facts = rendered(machine(tmp_path, f"kind = 'slurm'\n{more}{JOB}"))
        given = exported(facts["job_script"].replace("<", "").replace(">", ""))
        names = ("COMM__TIMEOUTS__TCP", "SCHEDULER__WORKER_TTL", "SCHEDULER__NO_WORKERS_TIMEOUT")
        return tuple(given.get(f"DASK_DISTRIBUTED__{name}") for name in names)

    assert told("n_workers = 2\n") == ("30s", "300s", "10 minutes")
    assert told("n_workers = 2\nlost_after = 900\n") == ("900s", "900s", "10 minutes")
    adapting = "adapt = {minimum = 2, maximum = 4}\n"
    assert told(adapting) == ("30s", "300s", None), "jobs that are asked for again may wait in a queue for hours"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("machine_*.toml")), ids=lambda p: p.name)
def test_a_run_keeps_its_machine(path: Path, tmp_path: Path):
    chosen = load_machine(path)
    kept = tmp_path / "machine.json"
    kept.write_text(json.dumps(chosen.to_json()))
    assert load_machine(kept) == chosen


@pytest.mark.parametrize("kind", ["serial", "local", "cuda", "address"])
@pytest.mark.parametrize("size", ["2GB", "1.5 GiB", "auto", "4000000000"])
def test_memory_is_given_as_dask_takes_it(tmp_path: Path, kind: str, size: str):
    path = tmp_path / "machine.toml"
    address = 'address = "tcp://h:1"\n' if kind == "address" else ""
    path.write_text(f'kind = "{kind}"\n{address}memory_limit = "{size}"\n')
    assert load_machine(path).memory_limit == (0 if size == "auto" else parse_bytes(size))
    for bad in ("much", "-2GB"):
        path.write_text(f'kind = "{kind}"\n{address}memory_limit = "{bad}"\n')
        with pytest.raises(ConfigError, match=r"memory_limit: .*(such as '2GB'|greater than or equal to 0)"):
            load_machine(path)


def test_machines_that_earlier_versions_kept(tmp_path: Path):
    kept = tmp_path / "machine.json"
    facts = {"n_workers": 0, "threads_per_worker": 0, "memory_limit": 0, "address": "", "backend": "numpy"}
    kept.write_text(json.dumps({"kind": "serial"} | facts))
    assert load_machine(kept) == Machine("serial")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("kind = 'slrum'", r"kind = 'slrum'.*did you mean 'slurm'"),
        ("kind = 'serial'\nn_workers = 2", r"n_workers has no effect for kind 'serial', only for local"),
        ("address = 'tcp://h:1'", r"address has no effect for kind 'local', only for address"),
        ("kind = 'local'\n[tls]\nca = 'a'", r"tls has no effect for kind 'local', only for address, slurm, pbs"),
        ("kind = 'cuda'\nbackend = 'numpy'", r"backend has no effect for kind 'cuda'"),
        ("kind = 'cuda'\n[gpu]\ndevice = [0]", r"unknown key 'gpu.device'.*did you mean 'devices'"),
        ("kind = 'cuda'\nn_workers = 2\n[gpu]\ndevices = [0]", r"2 workers for 1 devices"),
        ("kind = 'local'\nn_workers = 2\nadapt = {minimum = 1, maximum = 2}", r"n_workers has no effect beside"),
        ("kind = 'local'\nadapt = {minimum = 0, maximum = 2}", r"adapt.minimum.*got 0"),
        ("kind = 'local'\nadapt = {minimum = 3, maximum = 2}", r"minimum 3 is above maximum 2"),
        ("kind = 'local'\nadapt = {minimum = 1, maximal = 2}", r"adapt.maxim"),
        ("kind = 'address'", r"address: Field required"),
        ("kind = 'address'\naddress = 'host'", r"address.*got 'host'"),
        ("kind = 'address'\naddress = 'tcp://h:1'\n[tls]\nca='a'\ncert='b'\nkey='c'", r"no effect for 'tcp://h:1'"),
        ("kind = 'address'\naddress = 'tcp://h:1'\nlost_after = 10", r"lost_after.*got 10"),
        ("kind = 'local'\nlost_after = 60", r"lost_after has no effect for kind 'local', only for address, slurm"),
        ("kind = 'slurm'\nn_workers = 2", r"job: Field required"),
        (f"kind = 'slurm'\n{JOB}", r"how many workers"),
        (f"kind = 'slurm'\nn_workers = 3\n{JOB}", r"workers 3: whole jobs of 2 processes"),
        (
            f"kind = 'slurm'\nn_workers = 2\n{JOB}project = 'p'",
            r"job.project has no effect for kind 'slurm', only.*pbs",
        ),
        (f"kind = 'slurm'\nn_workers = 2\n{JOB}qeue = 'p'", r"unknown key 'job.qeue'.*did you mean 'queue'"),
        (f"kind = 'slurm'\nn_workers = 2\n{JOB}gpus = 1", r"a job with a GPU is one worker"),
        (f"kind = 'slurm'\nn_workers = 2\n{JOB}worker_extra_args = ['--nthreads=4']", r"'--nthreads=4' follows from"),
        (f"kind = 'slurm'\nn_workers = 2\n{JOB}queue = 'a b'", r"job.queue: no blanks"),
        (
            f"kind = 'pbs'\nn_workers = 2\n{JOB}job_script_prologue = ['a\\nb']".replace("['a\\nb']", '["a\\nb"]'),
            "one line",
        ),
        (f"kind = 'pbs'\nn_workers = 2\n{JOB}".replace("'16GB'", "'much'"), r"job.memory: a size such as.*got 'much'"),
        (f"kind = 'pbs'\nn_workers = 2\n{JOB}".replace("01:00:00", "an hour"), r"job.walltime"),
        (f"kind = 'pbs'\nn_workers = 9\n{JOB}".replace("processes = 2", "processes = 9"), r"more processes than.* 8"),
        (f"kind = 'kubernetes'\n{PODS}", r"how many workers"),
        (f"kind = 'kubernetes'\nn_workers = 1\n{PODS}".replace("cpu = '2', ", ""), r"pods.limits: cpu and memory"),
        (f"kind = 'kubernetes'\nn_workers = 1\n{PODS}name = 'A_b'", r"pods.name"),
        (
            f"kind = 'kubernetes'\nn_workers = 1\n{PODS}[[pods.volumes]]\nclaim = 'c'\npath = 'data'",
            r"pods.volumes.0.path",
        ),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        machine(tmp_path, text)


def test_a_machine_needs_what_its_kind_needs():
    for kind in ("slurm", "pbs", "kubernetes", "address"):
        with pytest.raises(ConfigError, match=f"a machine of kind '{kind}' without"):
            Machine(kind)
    job = Job(cores=4, memory="8GB", walltime="10")
    assert Machine("slurm", job=job, adapt=Adapt(1, 7), tls=Tls("a", "b", "c")).workers == 7
