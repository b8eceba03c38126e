"""The checks of `streamfit doctor --gpu` on a GPU, where there is one; its JSON and its error where there is none."""

import json

import pytest
from typer.testing import CliRunner

from streamfit.arrays import device_facts
from streamfit.cli import app
from streamfit.doctor_gpu import examine_backend
from streamfit.errors import ConfigError


def _no_gpu():
    try:
        device_facts()
    except ConfigError:
        return True
    return False


@pytest.mark.gpu
@pytest.mark.skipif(_no_gpu(), reason="no CuPy or no GPU")
def test_a_gpu_computes_what_numpy_does():
    found = examine_backend("cuda", sizes=(2048,))
    assert [check for check in found["checks"] if not check["passed"]] == []


@pytest.mark.skipif(not _no_gpu(), reason="there is a GPU")
def test_without_a_gpu_there_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"array backend 'cuda', but .*use backend 'numpy'"):
        examine_backend("cuda")


@pytest.mark.slow
def test_the_same_command_runs_on_the_host(tmp_path):
    out = tmp_path / "doctor.json"
    result = CliRunner().invoke(app, ["doctor", "--gpu", "--backend", "numpy", "--size", "64", "-o", str(out)])
    assert result.exit_code == 0
    found = json.loads(out.read_text())
    assert found["passed"]
    assert {"gram dense bf16", "bits repeat tf32", "double-buffered copies"} <= {c["name"] for c in found["checks"]}
    assert {s["precision"] for s in found["throughput"]["accumulate"]} == {"float32", "float64", "tf32", "bf16"}
