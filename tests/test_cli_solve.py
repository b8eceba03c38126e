"""Commands that answer from a store's sums, on a run of files: against scikit-learn, and their refusals."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LinearRegression, Ridge
from test_cli import streamfit

from streamfit.cli_solve import app as commands
from streamfit.engine import Machine, WorkOptions, connect, visit
from streamfit.errors import MismatchError, ShardChangedError
from streamfit.models import LinearModel
from streamfit.solve import GradientPass, solve
from streamfit.store import Store
from streamfit.stores import reader_of

D, GROUPS, ROWS = 6, 12, 100
NAMES = [f"x{j}" for j in range(D)]


def rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(GROUPS * ROWS, D)) + np.arange(D)
    y = x @ [1.0, -2.0, 0.0, 0.5, 0.0, 0.0] + np.sin(3 * x[:, 0]) + rng.normal(size=len(x))
    return x, y


X, Y = rows()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solve")
    columns = {name: X[:, j] for j, name in enumerate(NAMES)} | {"y": Y, "z": -(Y**2)}
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=ROWS)
    listed = ", ".join(f'"{name}"' for name in NAMES)
    (folder / "ridge.toml").write_text(
        f'kind = "ridge"\nrun = "{folder / "run"}"\ngroup_rows = {ROWS}\n'
        f'[corpus]\nroot = "{folder / "rows.parquet"}"\nfeatures = [{listed}]\ntarget = ["y", "z"]\n'
        '[[features]]\nkind = "linear"\n[[features]]\nkind = "rbf"\nn = 12\n'
        "[solve]\nalphas = [0.5]\nfolds = 4\n"
    )
    (folder / "serial.toml").write_text('kind = "serial"\n')
    done = streamfit("fit", folder / "ridge.toml", "--machine", folder / "serial.toml")
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def phi(run):
    """The features of every row, and both targets."""
    return Store(run / "store").header.features(X), np.column_stack([Y, -(Y**2)])


def here(arguments):
    """Commands that read rows do it in this process."""
    reads = arguments[0] in ("refine", "leave-one-out")
    return (*arguments, "--machine", arguments[1].parent / "serial.toml") if reads else arguments


def answer(*arguments):
    done = streamfit(*here(arguments), "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def model(*arguments, folder):
    done = streamfit(*here(arguments), "-o", folder)
    assert done.returncode == 0, done.stderr
    return LinearModel.load(folder).solution


ALPHAS = ("--alpha", 0.1, "--alpha", 10, "--alpha", 1000)


def test_an_alpha_for_each_target_and_by_each_criterion(run, phi, tmp_path):
    found = model("solve", run, *ALPHAS, "--per-target", folder=tmp_path / "m")
    assert found.target_alphas.shape == (2,)
    for k, alpha in enumerate(found.target_alphas):
        theirs = Ridge(alpha).fit(phi[0], phi[1][:, k])
        np.testing.assert_allclose(found.weights[:, k], theirs.coef_, rtol=1e-3, atol=1e-4)
    gcv = answer("solve", run, *ALPHAS, "--choose-by", "gcv")
    h = phi[0] - phi[0].mean(axis=0)
    scores = []
    for alpha in (0.1, 10, 1000):
        hat = h @ np.linalg.solve(h.T @ h + alpha * np.eye(h.shape[1]), h.T) + 1 / len(h)
        scores.append(len(h) * np.sum((phi[1] - hat @ phi[1]) ** 2) / (len(h) - np.trace(hat)) ** 2)
    np.testing.assert_allclose(gcv["scores"]["gcv"], scores, rtol=1e-5)
    assert gcv["alpha"] == pytest.approx((0.1, 10, 1000)[int(np.argmin(scores))])
    evidence = answer("solve", run, *ALPHAS, "--choose-by", "evidence")
    assert 0.1 <= evidence["alpha"] <= 1000
    assert evidence["alpha"] not in (0.1, 10, 1000)


def test_one_standard_error_takes_the_largest_alpha_that_folds_allow(run):
    best, simple = (
        answer("solve", run, *ALPHAS)["alpha"],
        answer("solve", run, *ALPHAS, "--one-standard-error")["alpha"],
    )
    assert simple >= best
    refused = streamfit("solve", run, *ALPHAS, "--one-standard-error", "--choose-by", "gcv")
    assert refused.returncode == 2


def test_blocks_have_their_own_alphas(run, tmp_path):
    found = answer("solve", run, "--blocks", "features", "--choose-by", "evidence")
    alphas = found["blocks"]["solution"]["alphas"]
    assert set(alphas) == {"linear", "rbf"}
    named = model("solve", run, "--blocks", "first=x0,x1", "--choose-by", "kfold", folder=tmp_path / "b")
    assert set(named.block_alphas) == {"first", "rest"}
    for wrong in (("--blocks", "oddity"), ("--blocks", "a=nothing*"), ("--blocks", "features", "--per-target")):
        done = streamfit("solve", run, *wrong)
        assert done.returncode == 2, wrong
        assert done.stderr.startswith("error: ")


def test_a_figure_of_the_choice(run, tmp_path):
    for extra in ((), ("--choose-by", "gcv")):
        assert streamfit("solve", run, *ALPHAS, *extra, "--plot", tmp_path / "path.svg").returncode == 0
        assert b"<svg" in (tmp_path / "path.svg").read_bytes()
    assert streamfit("solve", run, *ALPHAS, "--plot", tmp_path / "path.xyz").returncode == 2
    assert streamfit("solve", run, "--alpha", 1, "--plot", tmp_path / "none.png").returncode == 2


def test_an_optimum_that_is_not_proved_is_exit_code_3_and_no_model(run, tmp_path):
    done = streamfit("solve", run, "--alpha", 1, "--tolerance", 0, "-o", tmp_path / "m")
    assert done.returncode == 3
    assert "relative gradient" in done.stdout
    assert "expected 0 or less" in done.stderr
    assert not (tmp_path / "m").exists()


def test_refining_ends_at_the_optimum_of_the_rows(run, phi, tmp_path):
    before = model("solve", run, "--alpha", 0.5, folder=tmp_path / "a")
    after = model("refine", run, "--passes", 3, folder=tmp_path / "b")
    theirs = Ridge(0.5, solver="svd").fit(*phi)
    errors = [np.linalg.norm(m.weights - theirs.coef_.T) / np.linalg.norm(theirs.coef_) for m in (before, after)]
    assert errors[1] < 1e-10 < errors[0]
    found = answer("refine", run, "--passes", 1)["passes"]
    assert len(found) == 1
    assert found[0]["relative_gradient"] > 1e-10


def test_leave_one_out_is_every_refit(run, phi):
    found = answer("leave-one-out", run, "--alpha", 0.5, "--alpha", 50)
    missed = []
    for alpha in (0.5, 50):
        h = phi[0] - phi[0].mean(axis=0)
        hat = h @ np.linalg.solve(h.T @ h + alpha * np.eye(h.shape[1]), h.T) + 1 / len(h)
        residual = phi[1] - hat @ (phi[1] - phi[1].mean(axis=0)) - phi[1].mean(axis=0)
        missed.append(np.sum((residual / (1 - np.diag(hat))[:, None]) ** 2) / len(h))
    np.testing.assert_allclose(found["leave_one_out"], missed, rtol=1e-5)
    assert "largest leverage" in streamfit(*here(("leave-one-out", run, "--alpha", 0.5))).stdout


def test_posterior_shows_what_least_squares_does(run, phi):
    found = answer("posterior", run, "--alpha", 0, "--target", 0)
    ones = np.column_stack([np.ones(len(X)), phi[0]])
    residual = phi[1][:, 0] - LinearRegression().fit(phi[0], phi[1][:, 0]).predict(phi[0])
    variance = residual @ residual / (len(X) - ones.shape[1])
    assert found["noise_variance"][0] == pytest.approx(variance, rel=1e-5)
    errors = np.sqrt(variance * np.diag(np.linalg.inv(ones.T @ ones)))[1:]
    np.testing.assert_allclose(found["standard_errors"], errors, rtol=1e-3)
    assert len(found["p"]) == len(found["features"])
    assert streamfit("posterior", run, "--alpha", 1, "--target", 2).returncode == 2
    assert "standard error" in streamfit("posterior", run, "--alpha", 1).stdout


def test_a_pruned_model_computes_what_it_kept_and_no_more(run, tmp_path):
    files = ("-o", tmp_path / "m", "--plot", tmp_path / "c.png")
    done = streamfit("prune", run, "--alpha", 0.5, "--keep", 4, "--fold", 1, *files)
    assert done.returncode == 0, done.stderr
    small = LinearModel.load(tmp_path / "m")
    assert small.features.n_features == 4
    full = Store(run / "store").header.features
    np.testing.assert_allclose(small.features(X), full(X)[:, small.info["kept"]], rtol=1e-12, atol=1e-14)
    assert streamfit("evaluate", tmp_path / "m", run.parent / "rows.parquet").returncode == 0
    kept = set(answer("prune", run, "--alpha", 0.5, "--keep", 12, "--blocks", "all=x*")["kept"])
    assert kept.isdisjoint(range(D)) or kept.issuperset(range(D)), "a block leaves as one"
    for wrong in (("--alpha", 0.5), ("--alpha", 0.5, "--keep", 4, "--fold", 9)):
        assert streamfit("prune", run, *wrong).returncode == 2


def test_a_gram_matrix_that_memory_does_not_hold(run, tmp_path):
    inside = model("solve", run, "--alpha", 0.5, folder=tmp_path / "a")
    outside = model("solve", run, "--alpha", 0.5, "--memory", "1GB", "--scratch", tmp_path, folder=tmp_path / "b")
    np.testing.assert_allclose(outside.weights, inside.weights, rtol=1e-9, atol=1e-12)
    small = streamfit("solve", run, "--alpha", 0.5, "--memory", "1MB")
    assert small.returncode == 2
    assert "at least 315 MB" in small.stderr
    for wrong in (("--alpha", 1, "--alpha", 2), ("--alpha", 1, "--per-target"), ()):
        refused = streamfit("solve", run, *wrong, "--memory", "1GB")
        assert refused.returncode == 2
        assert "one --alpha" in refused.stderr
    assert streamfit("solve", run, "--alpha", 1, "--memory", "much").returncode == 2
    assert streamfit("solve", run, "--alpha", 1, "--scratch", tmp_path).returncode == 2


def test_every_command_explains_itself():
    names = {command.name or command.callback.__name__ for command in commands.registered_commands}
    assert names == {"solve", "refine", "leave-one-out", "posterior", "prune"}
    for name in names:
        assert "Usage" in streamfit(name, "--help").stdout


# The pass itself


def test_a_pass_has_the_same_bits_on_workers(run):
    store = Store(run / "store")
    solution = solve(store.moments(), 0.5)
    walk = GradientPass.of(solution, store.moments().centered().mean_x)
    here, _ = visit(store, reader_of(store, None), walk)
    with connect(Machine(n_workers=2, threads_per_worker=1, memory_limit=2**31)) as client:
        there, _ = visit(store, reader_of(store, None), walk, client=client, options=WorkOptions())
    for name in ("slope", "level", "squares", "spread"):
        np.testing.assert_array_equal(getattr(here, name), getattr(there, name))
    assert here.n_rows == GROUPS * ROWS


def test_rows_that_changed_or_never_were_are_refused(run, tmp_path):
    store = Store(run / "store")
    walk = GradientPass.of(solve(store.moments(), 0.5), store.moments().centered().mean_x)
    data = run.parent / "rows.parquet"
    whole = data.read_bytes()
    try:
        pq.write_table(pq.read_table(data).slice(1), data, row_group_size=ROWS)
        with pytest.raises(ShardChangedError):
            visit(store, reader_of(store, None), walk)
    finally:
        data.write_bytes(whole)
    with pytest.raises(MismatchError, match="without rows"):
        visit(Store.create(tmp_path / "empty", store.header), reader_of(store, None), walk)


# What the commands refuse, and how they name things


def test_features_go_by_the_columns_of_the_table(run):
    found = answer("posterior", run, "--alpha", 1)
    assert found["features"][:D] == NAMES
    blocks = answer("solve", run, "--blocks", "first=x0,x1", "--blocks", "one=rbf[0]")["blocks"]
    assert set(blocks["solution"]["alphas"]) == {"first", "one", "rest"}
    patterned = answer("solve", run, "--blocks", "all=x*")["blocks"]
    assert set(patterned["solution"]["alphas"]) == {"all", "rest"}


@pytest.mark.parametrize(
    "options",
    [
        ("--alpha", 1, "--blocks", "features"),
        ("--alpha", 1, "--one-standard-error"),
        ("--alpha", 1, "--memory", "1GB", "--choose-by", "gcv"),
    ],
)
def test_no_option_is_without_effect(run, options):
    done = streamfit("solve", run, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


def test_json_comes_before_the_verdict_and_holds_no_infinite_numbers(run, tmp_path):
    done = streamfit("solve", run, "--alpha", 1, "--tolerance", 0, "--json", "-o", tmp_path / "m")
    assert done.returncode == 3
    assert json.loads(done.stdout)["certificate"]["share"] > 0
    assert not (tmp_path / "m").exists()


def test_a_corpus_that_lacks_what_was_counted_is_refused(run, tmp_path):
    some = pq.read_table(run.parent / "rows.parquet").slice(0, 300)
    pq.write_table(some, tmp_path / "some.parquet", row_group_size=ROWS)
    done = streamfit(*here(("refine", run)), "--corpus", tmp_path / "some.parquet")
    assert done.returncode == 2
    assert "are not in that corpus" in done.stderr
