"""The benchmark of scaling: its model finds known costs and names the bottleneck; it runs whole on tiny sizes."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from store_helpers import leave_to_the_disk

from pipelines import bench_scaling
from pipelines.scaling_coordinator import Coordination, growth, simulate
from pipelines.scaling_model import Costs, Point, Site, project
from streamfit.errors import ConfigError
from streamfit.plan import default_group_rows

TRUE = (1e-9, 1e-10, 0.02, 5e-9)
SITE = Site("far", 100, 1e13, 1e10, 200.0, 1000.0)


def points_of(costs, n=12):
    rng = np.random.default_rng(0)
    found = []
    for terms in 10.0 ** rng.uniform((8, 10, 0, 6), (10, 12, 2, 9), size=(n, 4)):
        read, flops, groups, segments = terms
        found.append(Point(8, 100, int(groups), int(read), int(segments), flops, 1.0))
    return [replace(p, seconds=float(p.terms @ costs)) for p in found]


def test_model_finds_costs_that_made_its_points():
    fitted = Costs.fit(points_of(TRUE))
    np.testing.assert_allclose(fitted.seconds, TRUE, rtol=1e-6)
    np.testing.assert_allclose(fitted.residuals, 0.0, atol=1e-8)
    free = Costs.fit(points_of((1e-9, 1e-10, 0.0, 5e-9)))
    assert free.seconds[2] == pytest.approx(0.0, abs=1e-8)
    assert min(free.seconds) >= 0
    with pytest.raises(ConfigError, match="3 measured runs; expected at least 4"):
        Costs.fit(points_of(TRUE)[:3])


@pytest.mark.parametrize(
    ("changes", "bottleneck"),
    [
        ({"flops": 1e9}, "workers"),
        ({"storage": 1e6}, "storage"),
        ({"groups_per_s": 1e-4}, "commits"),
        ({"tasks_per_s": 1e-4}, "scheduler"),
        ({"n_workers": 1, "flops": 1e15}, "hashing"),
        ({}, "solve"),
    ],
)
def test_projection_names_what_it_waits_for(changes, bottleneck):
    rate = 1e-3 if bottleneck == "solve" else 1e12
    hashed = 1e6 if bottleneck == "hashing" else 1e12
    site = replace(SITE, **changes)
    found = project(1e12, 1024, 4096.0, site, Costs(TRUE), hash_rate=hashed, solve_rate=rate)
    assert found.bottleneck == bottleneck
    assert found.n_rows == int(1e12 / 4096)
    assert found.n_groups == -(-found.n_rows // default_group_rows(1024, 1))
    assert found.seconds == found.hashing + max(found.overlapping.values()) + found.solve


def test_a_coordinator_whose_time_grows_faster_than_its_groups_is_projected_so():
    seen = replace(SITE, groups_seen=1000, growth=1.5)
    few, many = (project(n, 1024, 4096.0, seen, Costs(TRUE), hash_rate=1e9, solve_rate=1e12) for n in (1e12, 1e14))
    assert few.n_groups < 1000 < many.n_groups
    assert few.overlapping["commits"] == few.n_groups / 200.0
    expected = many.n_groups / 200.0 * (many.n_groups / 1000) ** 0.5
    assert many.overlapping["commits"] == pytest.approx(expected)


def test_growth_is_the_exponent():
    runs = [Coordination(n, n, 1.0, 1e-4 * n**1.5, 0.0, 1.0, 1, 0) for n in (10, 100, 1000)]
    assert growth(runs) == pytest.approx(1.5)


def test_simulation_counts_each_group_in_a_commit_of_its_own(tmp_path, monkeypatch):
    leave_to_the_disk(monkeypatch)
    found = simulate(7, tmp_path, None, profile=True)
    assert (found.n_groups, found.n_records) == (7, 7)
    assert found.profile
    assert not list(tmp_path.iterdir())


def test_benchmark_runs_on_tiny_sizes(tmp_path, monkeypatch):
    leave_to_the_disk(monkeypatch)
    found = bench_scaling.main(bench_scaling.QUICK, folder=tmp_path, parallel=False, gpu_tflops=7.0)
    assert found.held_out.n_rows == 3 * 4 * 500
    assert {p.n_groups for p in found.points} == {4, 2, 1}
    text = bench_scaling.markdown(found)
    assert "ASSUMED, not measured: 7 TFLOP/s" in text
    assert "held out" in text
    assert json.loads(json.dumps(asdict(found)))["held_out"]["n_rows"] == 6000
    bench_scaling.draw(found, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
    with pytest.raises(ConfigError, match="expected numbers above 0"):
        bench_scaling.main(bench_scaling.QUICK, gpus=0)
