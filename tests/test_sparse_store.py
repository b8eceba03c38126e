"""Text in Parquet to a sparse store and a model, by commands; and the store's life: merged, forgotten, exported."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import zarr
from rich.console import Console
from sklearn.linear_model import Ridge
from test_cli import streamfit

from streamfit.config import SolveSection, load_problem
from streamfit.engine import Machine
from streamfit.errors import ConfigError, MismatchError, SolveError
from streamfit.features import Hashed
from streamfit.jobs import fit
from streamfit.models import LinearModel
from streamfit.passes import refine_store
from streamfit.solving import solve_store
from streamfit.sparse_moments import SparseMoments
from streamfit.store import Store, digest_of, export_dense, import_dense, merge, plan_tiled, verify

PARTS, ROWS = 4, 120
COLUMNS = ("origin", "day", "tags")
QUIET = Console(quiet=True)


def table(part):
    rng = np.random.default_rng(part)
    origin, day = rng.integers(0, 30, ROWS), rng.integers(0, 7, ROWS)
    tags = [[f"t{j}" for j in rng.integers(0, 9, rng.integers(0, 4))] for _ in range(ROWS)]
    y = 0.3 * origin - day + rng.normal(size=ROWS)
    names = pa.array([f"A{i}" for i in origin])
    return pa.table({"origin": names, "day": day, "tags": pa.array(tags, pa.list_(pa.string())), "y": y})


def config(folder, name, n, more=""):
    text = (
        f'kind = "ridge"\nrun = "{folder / name}"\ngroup_rows = 60\n{more}'
        f'[corpus]\nroot = "{folder / "data"}"\nfeatures = ["origin", "day", "tags"]\ntarget = ["y"]\n'
        f'[[features]]\nkind = "hashed"\nn = {n}\ncategories = ["day"]\n[solve]\nalphas = [2]\nfolds = 3\n'
    )
    (folder / f"{name}.toml").write_text(text)
    return folder / f"{name}.toml"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hashed")
    (folder / "data").mkdir()
    for part in range(PARTS):
        pq.write_table(table(part), folder / "data" / f"{part}.parquet", row_group_size=60)
    (folder / "serial.toml").write_text('kind = "serial"\n')
    done = streamfit("fit", config(folder, "run", 2**16), "--machine", folder / "serial.toml")
    assert done.returncode == 0, done.stderr
    assert "Gram matrix kept sparse" in done.stdout
    assert "GB dense" in done.stdout
    return folder


@pytest.fixture
def folder(base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    return tmp_path / "copy"


def rows_of(parts, n):
    hashed = Hashed(n, COLUMNS, ("day",))
    tables = [table(part) for part in parts]
    x = sp.vstack([hashed.of_records(t.select(COLUMNS).to_pylist()) for t in tables], format="csr")
    return x, np.concatenate([t["y"] for t in tables])


def test_the_model_is_that_of_scikit_learn(base):
    model = LinearModel.load(base / "run" / "model")
    x, y = rows_of(range(PARTS), 2**16)
    expected = Ridge(alpha=2.0, solver="sparse_cg", tol=1e-14, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(model.solution.weights[:, 0], expected.coef_, atol=1e-8)
    np.testing.assert_allclose(model.predict(x)[:, 0], expected.predict(x), atol=1e-8)
    moments = Store(base / "run" / "store").moments()
    assert isinstance(moments, SparseMoments)
    assert moments.n_rounded == 0
    scored = streamfit("evaluate", base / "run" / "model", base / "data", "--json")
    assert scored.returncode == 0, scored.stderr
    assert f"{expected.score(x, y):.6f}"[:7] in scored.stdout


def test_forgotten_rows_leave_no_bit(folder):
    store, machine = Store(folder / "run" / "store"), ("--machine", folder / "serial.toml")
    before = digest_of(store.moments())
    bits = [path.read_bytes() for path in sorted((folder / "data").glob("*"))]
    pq.write_table(table(9), folder / "extra.parquet", row_group_size=60)
    assert streamfit("add", folder / "run", folder / "extra.parquet", *machine).returncode == 0
    grown = digest_of(store.moments())
    assert grown != before
    for fast in ((), ("--fast",)):
        forgotten = streamfit("forget", folder / "run", "--shard", "extra.parquet", *fast, *machine)
        assert forgotten.returncode == 0, forgotten.stderr
        assert digest_of(store.moments()) == before
        if fast:
            break
        again = streamfit("add", folder / "run", folder / "extra.parquet", "--again", *machine)
        assert again.returncode == 0, again.stderr
        assert digest_of(store.moments()) == grown
    forgotten = streamfit("forget", folder / "run", "--where", "origin=A3", *machine, "--corpus", folder)
    assert forgotten.returncode == 0, forgotten.stderr
    column = store.header.features.tokens(["origin=A3"])[0][0]
    assert column not in store.moments().active
    assert bits == [path.read_bytes() for path in sorted((folder / "data").glob("*"))]
    assert verify(store).faults == []


def test_stores_merge_to_the_bits_of_one(folder):
    halves = []
    for half, parts in (("one", (0, 1)), ("two", (2, 3))):
        sub = folder / half
        (sub / "data").mkdir(parents=True)
        for part in parts:
            shutil.copy(folder / "data" / f"{part}.parquet", sub / "data")
        halves.append(Store.create(sub / "store", Store(folder / "run" / "store").header))
        done = streamfit("add", sub / "store", sub / "data", "--machine", folder / "serial.toml")
        assert done.returncode == 0, done.stderr
    merged = merge(halves, folder / "merged")
    assert merged.moments() == Store(folder / "run" / "store").moments()
    checked = streamfit("verify", merged.url, "--against", folder / "data", "--sample", "1",
                        "--machine", folder / "serial.toml")  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_dense_gram_of_the_same_rows_is_the_same(folder):
    found = {}
    for name in ("gram", "sparse"):
        problem = load_problem(config(folder, name, 64, f'statistic = "{name}"\n'))
        found[name] = fit(problem, Machine(kind="serial"), None, QUIET)
    dense, sparse = found["gram"], found["sparse"]
    assert sparse.store.moments().narrowed(np.arange(64)) == dense.store.moments()
    np.testing.assert_allclose(dense.solved.solution.weights, sparse.solved.solution.weights, atol=1e-12)
    with pytest.raises(MismatchError, match="was made with statistic = 'gram'"):
        fit(load_problem(config(folder, "gram", 64, 'statistic = "sparse"\n')), Machine(kind="serial"), None, QUIET)
    # Choices that need eigenvectors work on the features that occur.
    chosen = solve_store(sparse.store, SolveSection(alphas=(0.1, 1.0, 10.0), choose_by="gcv"), QUIET)
    assert chosen.solution.rank < 60
    assert chosen.scores is not None


def test_any_tool_reads_the_matrix(base):
    store = Store(base / "run" / "store")
    total = np.zeros((0, 0))
    for segment in store.head().segments:
        group = zarr.open_group(str(base / "run" / "store" / "segments" / segment.id), mode="r")
        values = group["gram"][:] + group["gram_fine"][:]
        part = sp.csr_array((values, group["gram_indices"][:], group["gram_indptr"][:]), shape=(2**16, 2**16))
        total = part if not total.size else total + part
    x, _ = rows_of(range(PARTS), 2**16)
    units = np.ldexp(1.0, store.header.frame.exponents)
    scaled = x.multiply(1 / units).tocsr()
    assert (sp.triu(scaled.T @ scaled, format="csr") != sp.csr_array(total)).nnz == 0


def test_where_many_features_occur_conjugate_gradients_solve(base, monkeypatch):
    store = Store(base / "run" / "store")
    expected = solve_store(store, SolveSection(alphas=(0.1, 1.0, 10.0)), QUIET)
    monkeypatch.setattr("streamfit.solving.DENSE_FEATURES", 10)
    found = solve_store(store, SolveSection(alphas=(0.1, 1.0, 10.0)), QUIET)
    assert (found.solution.method, expected.solution.method) == ("conjugate_gradients", "cholesky")
    assert found.solution.alpha == expected.solution.alpha
    np.testing.assert_allclose(found.path.losses, expected.path.losses, rtol=1e-8)
    np.testing.assert_allclose(found.solution.weights, expected.solution.weights, atol=1e-9)
    with pytest.raises(SolveError, match="eigenvectors"):
        solve_store(store, SolveSection(alphas=(0.1, 1.0), choose_by="evidence"), QUIET)


def test_what_needs_a_dense_matrix_is_refused(base):
    store = Store(base / "run" / "store")
    solved = solve_store(store, SolveSection(alphas=(1.0,)), QUIET)
    with pytest.raises(MismatchError, match="statistic 'gram'"):
        plan_tiled(store, memory_bytes=2**31)
    with pytest.raises(ConfigError, match="blocks of hashed features"):
        solve_store(store, SolveSection(blocks="features"), QUIET)
    with pytest.raises(SolveError, match="sparse sums"):
        refine_store(store, solved, Machine(kind="serial"), None, QUIET)
    with pytest.raises(ConfigError, match="a dense Gram matrix of 65,536"):
        export_dense(store, base / "sums.npz")
    with pytest.raises(MismatchError, match="dense sums"):
        import_dense(store, base / "none.npz", "x")
    done = streamfit("posterior", base / "run", "--alpha", 1)
    assert done.returncode != 0
    assert "a dense matrix of 65,536 hashed features" in " ".join(done.stderr.split())
    assert verify(store).faults == []
