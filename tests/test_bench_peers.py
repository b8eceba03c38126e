"""The benchmark of peers on rows of a few kilobytes: weights against its reference, limits, and what they become."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipelines import bench_peers
from pipelines.peers.contestants import PEERS, exceeded, out_of_memory
from pipelines.peers.rows import N_FILES, batches, files, make
from pipelines.peers.supervise import Course, supervised
from pipelines.peers.verdict import Row, read_course

MEMORY = 3 * 10**9


@pytest.mark.slow
def test_streamfit_and_scikit_learn_meet_the_reference(tmp_path: Path) -> None:
    found = bench_peers.main(
        n_rows=100_000,
        n_features=5,
        memory=MEMORY,
        folder=tmp_path,
        only=["streamfit", "ridge"],
        precision="float64",
        means=[1_000.0],
        accuracy_rows=400,
        n_cores=1,
    )
    rows = [Row(**row) for row in found["rows"]]
    assert [(row.name, row.n_rows) for row in rows] == [
        ("streamfit", 100_000),
        ("scikit-learn Ridge(cholesky)", 100_000),
    ]
    for row in rows:
        assert row.note == ""
        assert row.error is not None
        assert row.error < 1e-12
        assert row.rows_per_cpu_second
        assert row.peak_bytes > 50e6  # an interpreter with NumPy
    for name, errors in found["accuracy"].items():
        assert errors["1000"] < 1e-10, name
    screen = Console(record=True, width=190, file=io.StringIO())
    bench_peers.report({**found, "blas": {"dsyrk": 1.0}}, screen)
    assert "rows used" in screen.export_text()


def test_reference_is_the_ridge_of_all_rows_and_sums_are_read_again(tmp_path: Path) -> None:
    sums = make(tmp_path, 200, 3, seed=1, keep=[7], mean=10.0)
    assert sums.keys() == {7, N_FILES}
    x, y = (np.concatenate(part).astype(np.float64) for part in zip(*batches(files(tmp_path, 7), 3, 6), strict=True))
    for penalise_intercept in (False, True):
        system = np.column_stack([x, np.ones(len(x))])
        penalty = np.diag([2.0, 2.0, 2.0, 2.0 * penalise_intercept])
        best = np.linalg.solve(system.T @ system + penalty, system.T @ y)[:3]
        found = sums[7].ridge(2.0, penalise_intercept=penalise_intercept)
        np.testing.assert_allclose(found, best, rtol=1e-8)
    assert sums[7].y_deviation == pytest.approx(y.std())
    again = make(tmp_path, 200, 3, seed=1, keep=[7], mean=10.0)
    assert np.array_equal(again[7].gram, sums[7].gram)


@pytest.mark.parametrize(
    ("statement", "timeout", "memory", "ended"),
    [
        ("held = bytearray(200_000_000)", 30.0, 100_000_000, "memory"),
        ("pass", 0.3, 0, "time"),
        ("print('@ 1', flush=True)", 30.0, 0, ""),
    ],
)
def test_limits_end_the_whole_tree(statement: str, timeout: float, memory: int, ended: str, tmp_path: Path) -> None:
    wait = "" if not ended else "; import time; time.sleep(60)"
    course = supervised(
        [sys.executable, "-S", "-c", statement + wait],
        environ={},
        mark="@ ",
        timeout=timeout,
        memory=memory,
        scratch=tmp_path,
    )
    assert course.ended == ended
    assert [line.strip() for _, _, line in course.lines] == ([] if ended else ["1"])


@pytest.mark.parametrize(
    ("course", "reason"),
    [
        (Course(ended="memory"), "exceeded 3 GB"),
        (Course(exit_code=-6, tail="terminate called after throwing an instance of 'std::bad_alloc'"), "exceeded 3 GB"),
        (Course(ended="time"), "did not finish in 9 s"),
        (Course(exit_code=3, tail="one\ntwo\n"), "exit code 3: two"),
    ],
)
def test_a_contestant_that_ends_early_is_a_row_with_its_reason(course: Course, reason: str) -> None:
    order = {"memory": MEMORY, "jobs": [{"n_rows": 10}]}
    outcome = read_course(PEERS[0], course, order, timeout=9.0)[0]
    assert outcome["reason"] == reason
    row = Row.of(PEERS[0], outcome, whole=10)
    assert row.note == reason
    assert row.rows_per_second is None


def test_failed_allocations_are_told_from_other_faults() -> None:
    assert out_of_memory("_ArrayMemoryError: Unable to allocate 7.45 GiB")
    assert out_of_memory("java.lang.OutOfMemoryError: Java heap space")
    assert not out_of_memory("ValueError: 3 rows")
    assert exceeded(2_500_000_000) == "exceeded 2.5 GB"


def test_an_unknown_contestant_is_named_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no contestant abacus; expected some of streamfit, intelex"):
        bench_peers.main(n_rows=20, n_features=2, memory=MEMORY, folder=tmp_path, only=["abacus"])
