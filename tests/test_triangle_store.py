"""A store that keeps a triangular factor: the same life as one of sums, equal up to rounding, and no subtraction."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from store_helpers import header_of, shard_of
from test_cli import streamfit

from streamfit.errors import ConfigError, MismatchError, StoreError
from streamfit.models import LinearModel
from streamfit.moments import Moments
from streamfit.solve import IllConditionedWarning, solve
from streamfit.store import Mix, Store, compact, import_dense, merge, verify
from streamfit.targets import OneHot
from streamfit.triangle import Triangle

X = ("a", "b", "c")
PARTS, ROWS = 4, 300


def table(part):
    """Columns so nearly dependent that no Gram matrix in float64 tells them apart."""
    rng = np.random.default_rng(part)
    a, b = rng.normal(size=(2, ROWS)) + 5.0
    c = a + b + 1e-9 * rng.normal(size=ROWS)
    y = a - b + 1e9 * (c - a - b) + 0.1 * rng.normal(size=ROWS)
    return pa.table({"a": a, "b": b, "c": c, "y": y, "doc": np.arange(ROWS) // 10})


@pytest.fixture
def run(tmp_path):
    (tmp_path / "data").mkdir()
    for part in range(PARTS):
        pq.write_table(table(part), tmp_path / "data" / f"{part}.parquet", row_group_size=100)
    (tmp_path / "qr.toml").write_text(
        f'kind = "ridge"\nrun = "{tmp_path / "run"}"\nstatistic = "qr"\ngroup_rows = 100\n'
        f'[corpus]\nroot = "{tmp_path / "data"}"\nfeatures = ["a", "b", "c"]\ntarget = ["y"]\n'
        "[solve]\nalphas = [1e-16]\nfolds = 3\n"
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    done = streamfit("fit", tmp_path / "qr.toml", "--machine", tmp_path / "serial.toml")
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def weights_of(tables):
    """Least squares on the rows."""
    x = np.concatenate([np.column_stack([t[c] for c in X]) for t in tables])
    y = np.concatenate([t["y"] for t in tables])
    return np.linalg.lstsq(x - x.mean(axis=0), y - y.mean(), rcond=None)[0]


def reading(*arguments):
    """A command that reads rows, in this process."""
    return streamfit(*arguments, "--machine", arguments[1].parent / "serial.toml")


def solved(run, *options):
    done = streamfit("solve", run, "--alpha", 0, "-o", run / "solved", *options)
    assert done.returncode == 0, done.stderr
    return LinearModel.load(run / "solved").solution


def test_it_finds_what_normal_equations_cannot(run):
    expected = weights_of([table(i) for i in range(PARTS)])
    found = solved(run)
    np.testing.assert_allclose(found.weights[:, 0], expected, rtol=1e-5)
    assert (found.method, found.rank) == ("qr", 3)
    assert found.certificate.digits_lost == pytest.approx(9.5, abs=0.5)
    moments = Store(run / "store").moments()
    assert isinstance(moments, Triangle)
    rows = np.concatenate([np.column_stack([table(i)[c] for c in (*X, "y")]) for i in range(PARTS)])
    sums = Moments.from_rows(rows[:, :3], rows[:, 3:], moments.frame, Store(run / "store").header.targets)
    with pytest.warns(IllConditionedWarning, match="nearly dependent"):
        squared = solve(sums, 0.0).weights[:, 0]
    assert np.abs(squared / expected - 1).max() > 1e-2


def test_forgetting_counts_the_rest_anew(run):
    fast = reading("forget", run, "--where", "doc=3", "--fast")
    assert fast.returncode == 2
    assert "leave out --fast" in fast.stderr
    assert Store(run / "store").head().n_rows == PARTS * ROWS
    done = reading("forget", run, "--where", "doc=3")
    assert done.returncode == 0, done.stderr
    left = [t.filter(np.asarray(t["doc"]) != 3) for t in map(table, range(PARTS))]
    np.testing.assert_allclose(solved(run).weights[:, 0], weights_of(left), rtol=1e-5)
    assert reading("verify", run, "--against", run.parent / "data", "--sample", 1).returncode == 0


def test_compaction_and_merging_change_rounding_alone(run, tmp_path):
    store = Store(run / "store")
    before, weights = store.moments(), solved(run).weights
    assert compact(store) > 0
    assert store.moments().agrees(before)
    np.testing.assert_allclose(solved(run).weights, weights, rtol=1e-5)
    assert verify(store).faults == []
    assert reading("verify", run, "--against", run.parent / "data", "--sample", 1).returncode == 0
    other = Store.create(tmp_path / "other", store.header)
    rows = Triangle.from_rows(np.eye(3), np.ones((3, 1)), before.frame, store.header.targets)
    other.commit([other.write_segment(rows, [shard_of(1)], [3])])
    merged = merge([store, other], tmp_path / "both")
    assert merged.moments().n_rows == PARTS * ROWS + 3


def test_the_order_of_commits_does_not_show(run, tmp_path):
    """The sum is taken by content; so two stores of the same segments give the same bits."""
    store = Store(run / "store")
    again = Store.create(tmp_path / "again", store.header)
    for segment in reversed(store.head().segments):
        moments, tables = store.read_all(segment)
        shards = store.ledger(segment)
        again.commit([again.write_segment(moments, shards, [s.planned_rows for s in shards], tables)])
    assert again.moments() == store.moments()


def test_weights_and_export(run, tmp_path):
    store = Store(run / "store")
    assert store.moments(mix=Mix.parse(["source:*=0.5"])).total_weight == pytest.approx(PARTS * ROWS / 2)
    assert streamfit("export", run, tmp_path / "sums.npz").returncode == 0
    with np.load(tmp_path / "sums.npz") as file:
        x = np.concatenate([np.column_stack([table(i)[c] for c in X]) for i in range(PARTS)]) - file["origin"]
        np.testing.assert_allclose(file["gram"], x.T @ x, rtol=1e-12)
        np.testing.assert_allclose(file["sum_x"], x.sum(axis=0), rtol=1e-9)
    with pytest.raises(MismatchError, match="a Gram matrix has lost the digits"):
        import_dense(store, tmp_path / "sums.npz", "elsewhere")


def test_a_grid_is_cross_validated_and_other_choices_are_refused(run):
    done = streamfit("solve", run, "--alpha", 1e-3, "--alpha", 1e-18, "--json")
    assert done.returncode == 0, done.stderr
    for option in (("--choose-by", "gcv"), ("--per-target",)):
        refused = streamfit("solve", run, "--alpha", 1, "--alpha", 2, *option)
        assert refused.returncode == 2
        assert "statistic 'qr'" in refused.stderr


def test_what_does_not_fit_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="precision 'float64'"):
        header_of("float32", statistic="qr")
    text = (tmp_path / "qr.toml").read_text()
    (tmp_path / "low.toml").write_text(text.replace('statistic = "qr"', 'statistic = "qr"\nprecision = "float32"'))
    refused = streamfit("fit", tmp_path / "low.toml")
    assert refused.returncode == 2
    assert "takes precision 'float64'" in refused.stderr
    (tmp_path / "gram.toml").write_text(text.replace('statistic = "qr"', 'precision = "float64"'))
    other = streamfit("fit", tmp_path / "gram.toml")
    assert other.returncode == 2
    assert "was made with statistic = 'qr'" in other.stderr
    store = Store(run / "store")
    assert store.header.difference(header_of("float64", statistic="gram")).find("statistic") >= 0


def test_a_damaged_factor_is_found(tmp_path):
    header = header_of(targets=OneHot(3), statistic="qr")
    store = Store.create(tmp_path / "store", header)
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(50, header.frame.n_features)), rng.integers(3, size=50)
    whole = Triangle.from_rows(x, ids, header.frame, header.targets)
    bad = whole.factor.copy()
    bad[3, 0] = 1.0
    for number, factor in enumerate([whole.factor, bad, bad[:4, :4]]):
        segment = store.write_segment(Triangle(header.frame, True, 50, factor), [shard_of(number)], [50])
        if number == 2:
            with pytest.raises(StoreError, match=r"factor of segment .* was altered"):
                store.read(segment)
        else:
            store.commit([segment])
    assert [fault.split(" of segment")[0] for fault in verify(store).faults] == ["the factor"]
