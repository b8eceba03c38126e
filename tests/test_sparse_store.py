"""Text in Parquet to a sparse store and a model, by commands; and the store's life: merged, forgotten, exported."""

import shutil
from dataclasses import replace
from itertools import combinations

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
from streamfit.corpus import Files, ParquetTable
from streamfit.engine import Machine, plan_for
from streamfit.errors import ConfigError, MismatchError, SolveError
from streamfit.features import Hashed
from streamfit.frame import panels_of
from streamfit.jobs import fit
from streamfit.models import LinearModel
from streamfit.passes import refine_store
from streamfit.solving import solve_store
from streamfit.sparse_moments import SparseMoments
from streamfit.store import Store, digest_of, export_dense, import_dense, merge, plan_tiled, verify
from streamfit.tables import Block, prepare_table

PARTS, ROWS = 4, 60
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
        f'kind = "ridge"\nrun = "{folder / name}"\ngroup_rows = 120\n{more}'
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


@pytest.mark.slow
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


@pytest.mark.parametrize("group_rows", [20_000, 1_000, 50])
def test_a_sorted_file_is_projected_from_all_its_parts(tmp_path, group_rows):
    # The last one has more row groups, each of a few days, than are sampled.
    rng = np.random.default_rng(5)
    n = 20_000
    day, origin, late = np.sort(rng.integers(0, 300, n)), rng.integers(0, 60, n), rng.integers(0, 40, n)
    names = {"day": day, "origin": origin, "late": late}
    pq.write_table(pa.table({**names, "y": rng.normal(size=n)}), tmp_path / "a.parquet", row_group_size=group_rows)
    hashed = Hashed(2**16, tuple(names), tuple(names))
    source = ParquetTable(Files(str(tmp_path)), tuple(names), ("y",), hashed=hashed)
    options = {"precision": "float64", "n_folds": 3, "seed": 0, "sample_rows": 1_500}
    header = prepare_table(source, [Block("hashed", 2**16)], **options)
    pairs = sum(len(np.unique(names[a] * 1000 + names[b])) for a, b in combinations(names, 2))
    true = pairs + sum(len(np.unique(values)) for values in names.values())
    sampled = header.density
    assert 1_400 < sampled.sample_rows < 3_000
    assert 0.8 * true < sampled.projected(n) < 2.0 * true
    again = prepare_table(source, [Block("hashed", 2**16)], **options)
    assert again.content_hash == header.content_hash
    if group_rows == 20_000:
        with pytest.raises(ConfigError, match="count_rows = 'always'"):
            prepare_table(source, [Block("hashed", 2**16)], **options, count_rows="always")


def test_dense_means_to_sum_faster_are_refused(base):
    header = Store(base / "run" / "store").header
    for change, message in (
        ({"precision": "bf16"}, "hashed features with precision 'bf16'"),
        ({"counted": True}, "hashed features of counted rows"),
        ({"statistic": "qr"}, "statistic 'qr' with hashed features"),
    ):
        with pytest.raises(ConfigError, match=message):
            replace(header, **{"precision": "float64", **change})
    with pytest.raises(ConfigError, match="a panel of the Gram matrix"):
        header.accumulator(panel=panels_of(2**16, 2)[0])
    plan = plan_for(Store(base / "run" / "store"), [], n_workers=1)
    assert plan.within(1) == plan
    assert not any("panels" in line for line in plan.lines(3))
    with pytest.raises(ConfigError, match="precision 'tf32'"):
        SparseMoments.zeros(header.frame, header.targets, "tf32")
