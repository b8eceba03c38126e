"""The table of hard problems, small: every bound holds, and each method reaches what it is there for."""

import pytest

from pipelines import prove_solve


@pytest.fixture(scope="module", params=[0.0, 1e-6])
def rows(request, quiet):
    return prove_solve.main(60, 5, request.param, quiet)


def named(rows, problem, method):
    return next(row for row in rows if row["problem"].startswith(problem) and row["method"] == method)


def test_every_bound_holds(rows):
    certified = [row for row in rows if row["bound"] is not None]
    assert len(certified) == 5 * len({row["problem"] for row in rows})
    assert [row for row in certified if row["holds"] is False] == []
    assert sum(row["holds"] is True for row in certified) >= 25, "a bound that says nothing is no success"


@pytest.mark.parametrize("problem", ["well posed", "mean 1e6", "units from", "a column twice", "a constant"])
def test_sums_in_float64_are_as_good_as_rows_in_memory(rows, problem):
    sums, memory = named(rows, problem, "sums float64"), named(rows, problem, "numpy lstsq")
    assert sums["error"] < 1e-13 or sums["error"] < 100 * memory["error"]


@pytest.mark.parametrize("problem", ["well posed", "mean 1e6", "units from", "a constant"])
def test_refining_brings_float32_to_float64(rows, problem):
    before, after = named(rows, problem, "sums float32"), named(rows, problem, "float32, refined 10 times")
    assert after["error"] < 1e-13 < 1e-9 < before["error"]


@pytest.mark.parametrize(
    ("problem", "error"), [("condition 1e6", 1e-9), ("condition 1e10", 1e-5), ("condition 1e12", 1e-3)]
)
def test_triangles_bear_what_sums_do_not(rows, problem, error):
    assert named(rows, problem, "triangle")["error"] < error
    if rows[0]["alpha"] == 0:
        assert named(rows, problem, "sums float64")["error"] > 100 * named(rows, problem, "triangle")["error"]
