"""The tiled solve against NumPy and the solve in memory; its plan against what it takes; what its certificate says."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.centered import Centered
from streamfit.errors import PlanError, SolveError
from streamfit.frame import Frame
from streamfit.moments import Moments
from streamfit.plan import PROCESS_BYTES
from streamfit.solve.ridge import IllConditionedWarning, solve
from streamfit.solve.tiled import multiply, solve_tiles
from streamfit.solve.tiled_cholesky import factor_tiles
from streamfit.solve.tiles import ArrayTiles, TiledSums, plan_tiles
from streamfit.targets import Dense

PLENTY = 2**33


def centered(d, k=2, seed=0, n=None, spread=4):
    """Sums of rows whose features differ in unit by powers of two."""
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(n or 2 * d + 10, d)) * 2.0 ** rng.integers(-spread, spread + 1, size=d) + 1.0
    y = phi @ rng.normal(size=(d, k)) + rng.normal(size=(len(phi), k))
    return Moments.from_rows(phi, y, Frame.from_sample(phi, y, Dense(k)), Dense(k)).centered()


def with_spectrum(eigenvalues, seed=0):
    """Sums whose Gram matrix has these eigenvalues."""
    d = len(eigenvalues)
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    gram = (basis * eigenvalues) @ basis.T
    zero = np.zeros(d)
    return Centered(9, 9.0, zero, np.zeros(1), (gram + gram.T) / 2, rng.normal(size=(d, 1)), np.full(1, 1e3), zero)


class Counting(ArrayTiles):
    """Keeps the numbers of tiles that were read and written."""

    def __init__(self, d, edge):
        super().__init__(np.full((d, d), np.nan), edge)
        self.__dict__.update(reads=[], writes=[])

    def read(self, i, j):
        self.reads.append((i, j))
        return super().read(i, j)

    def write(self, i, j, tile):
        self.writes.append((i, j))
        super().write(i, j, tile)


def least_memory(sums, n_targets):
    """The least number of bytes that a plan accepts."""
    with pytest.raises(PlanError) as refused:
        plan_tiles(sums.gram, n_targets, 0)
    assert "at least" in str(refused.value)
    t = -(-sums.gram.n_features // sums.gram.edge)
    low, high = 0, PLENTY
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan_tiles(sums.gram, n_targets, middle)
            high = middle
        except PlanError:
            low = middle
    assert plan_tiles(sums.gram, n_targets, high).panel_tiles == t
    return high


def tiled(c, alpha, edge, extra=None, fit_intercept=True, **options):
    """Solve with a number of tiles more in memory than the least; with all of them without it."""
    sums, k = TiledSums.of(c, edge, fit_intercept=fit_intercept), c.cross.shape[1]
    memory = PLENTY if extra is None else least_memory(sums, k) + extra * 8 * edge**2
    plan = plan_tiles(sums.gram, k, memory)
    return solve_tiles(sums, alpha, plan, Counting(len(c.gram), edge), **options)


@given(st.integers(1, 40), st.integers(1, 15), st.integers(0, 30), st.sampled_from([0.0, 1e-2, 10.0]), st.booleans())
def test_the_weights_are_those_of_the_solve_in_memory(d, edge, extra, alpha, fit_intercept):
    c = centered(d, seed=d)
    ours, theirs = tiled(c, alpha, edge, extra, fit_intercept), solve(c, alpha, fit_intercept=fit_intercept)
    scale = np.sqrt(np.diag(c.gram) + alpha)[:, None]
    assert np.linalg.norm(scale * (ours.weights - theirs.weights)) <= 1e-12 * np.linalg.norm(scale * theirs.weights)
    np.testing.assert_allclose(ours.intercept, theirs.intercept, rtol=1e-9, atol=1e-9)
    assert ours.effective_dof == pytest.approx(theirs.effective_dof, rel=1e-9)
    assert (ours.method, ours.rank, ours.alpha) == ("cholesky", d, alpha)
    mine, other = ours.certificate, theirs.certificate
    assert mine.loss == pytest.approx(other.loss, rel=1e-9, abs=1e-9 * c.ss_y.sum())
    assert mine.strong_convexity == pytest.approx(other.strong_convexity, rel=1e-6)
    assert other.condition * (1 - 1e-6) <= mine.condition <= other.condition * np.sqrt(d) * (1 + 1e-6)
    assert mine.relative_gradient < 1e-14
    assert mine.unique


@given(st.integers(2, 60), st.integers(1, 20), st.integers(0, 40))
def test_memory_does_not_change_a_bit(d, edge, extra):
    c = centered(d, k=1, seed=d)  # targets in blocks of other widths do round otherwise
    few, all_in_memory = tiled(c, 1.0, edge, extra), tiled(c, 1.0, edge)
    assert np.array_equal(few.weights, all_in_memory.weights)
    assert few.certificate == all_in_memory.certificate


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 40))
def test_the_plan_is_what_happens(d, edge, extra):
    sums = TiledSums.of(centered(d, seed=d), edge)
    memory = least_memory(sums, 2) + extra * 8 * edge**2
    plan = plan_tiles(sums.gram, 2, memory)
    place = Counting(d, edge)
    factor = factor_tiles(sums.gram, sums.diagonal, 1.0, plan, place)
    assert plan.memory_bytes <= memory
    assert [start for start, _ in plan.panels] == [0, *(stop for _, stop in plan.panels[:-1])]
    assert plan.panels[-1][1] == plan.n_rows
    assert len(place.writes) * plan.tile_bytes == plan.scratch_bytes
    assert len(set(place.writes)) == len(place.writes)
    streamed = sum(start * (plan.n_rows - start) for start, _ in plan.panels)
    assert len(place.reads) == streamed
    place.reads.clear()
    factor.solve(np.ones((d, 1)))
    assert len(factor.kept) <= plan.panel_tiles
    before = len(place.reads)
    factor.solve(np.ones((d, 1)))
    # Those that have found a place in memory are not read again.
    assert len(place.reads) - before == 2 * (plan.n_rows * (plan.n_rows + 1) // 2 - len(factor.kept))
    assert plan.lines()[1].startswith("memory: ")


def test_more_memory_reads_less():
    source = ArrayTiles(np.empty((400, 400)), 10)
    least = least_memory(TiledSums.of(centered(400, n=20), 10), 1)
    plans = [plan_tiles(source, 1, least + extra * 800) for extra in range(0, 900, 50)]
    assert [p.read_bytes for p in plans] == sorted((p.read_bytes for p in plans), reverse=True)
    assert len(plans[0].panels) > 10
    assert len(plans[-1].panels) == 1
    assert plans[-1].scratch_bytes == 0


def test_a_row_of_tiles_must_fit():
    source = ArrayTiles(np.empty((400, 400)), 10)
    with pytest.raises(
        PlanError, match=r"1e\+03 MB|315 MB of memory for 400 features; expected at least .* of 40 tiles"
    ):
        plan_tiles(source, 1, PROCESS_BYTES)


def test_memory_stays_within_the_plan():
    c = centered(600, k=40, n=900)
    sums = TiledSums.of(c, 50)
    plan = plan_tiles(sums.gram, 40, least_memory(sums, 40) + 2**20)
    place = ArrayTiles(np.empty((600, 600)), 50)
    assert len(plan.panels) > 1
    assert 1 < plan.block_targets < 40
    tracemalloc.start()
    try:
        solve_tiles(sums, 1.0, plan, place)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= plan.memory_bytes - PROCESS_BYTES
    assert peak > plan.panel_tiles * plan.tile_bytes  # or the plan promises nothing


def test_targets_in_blocks():
    c = centered(30, k=25)
    sums = TiledSums.of(c, 8)
    place = ArrayTiles(np.empty((30, 30)), 8)
    blocks = plan_tiles(sums.gram, 25, least_memory(sums, 25))
    assert blocks.block_targets == 1
    found, whole = solve_tiles(sums, 1.0, blocks, place), solve(c, 1.0)
    np.testing.assert_allclose(found.weights, whole.weights, rtol=1e-10, atol=1e-12)
    assert found.certificate.loss == pytest.approx(whole.certificate.loss, rel=1e-10)


@pytest.mark.parametrize("alpha", [0.0, 1e-3])
@pytest.mark.parametrize("shape", ["even", "one far below", "many at the bottom", "all the same"])
def test_the_strong_convexity_is_a_bound_and_no_more_than_a_factor_of_two_off(alpha, shape):
    d = 200
    eigenvalues = np.geomspace(1e-4, 10.0, d)
    if shape == "all the same":
        eigenvalues[:] = 3.0
    if shape == "one far below":
        eigenvalues[0] = 1e-7
    if shape == "many at the bottom":
        eigenvalues[: d // 2] = eigenvalues[0]
    c = with_spectrum(eigenvalues)
    exact = np.linalg.eigvalsh(c.gram)
    certificate = tiled(c, alpha, 32).certificate
    assert 0.45 * (exact[0] + alpha) <= certificate.strong_convexity <= exact[0] + alpha
    assert certificate.condition >= (exact[-1] + alpha) / (exact[0] + alpha)
    assert certificate.suboptimality >= solve(c, alpha).certificate.suboptimality / 4


@pytest.mark.parametrize("alpha", [0.0, 1.0, 30.0])
def test_effective_degrees_of_freedom(alpha):
    d = 300
    c = with_spectrum(np.geomspace(1e-2, 1e3, d))
    eigenvalues = np.linalg.eigvalsh(c.gram)
    exact = np.sum(eigenvalues / (eigenvalues + alpha))
    found = tiled(c, alpha, 64).effective_dof
    assert abs(found - exact) <= 3 * np.sqrt(2 * min(exact, d - exact) / 64) + 1e-9 * d
    assert (found == d) == (alpha == 0)


def test_a_product_with_the_matrix():
    gram = centered(23).gram
    x = np.random.default_rng(0).normal(size=(23, 3))
    np.testing.assert_allclose(multiply(ArrayTiles(gram, 5), x), gram @ x, rtol=1e-12)


def test_the_factor_is_the_matrix():
    c = centered(23)
    sums = TiledSums.of(c, 5)
    place = Counting(23, 5)
    factor = factor_tiles(sums.gram, sums.diagonal, 2.0, plan_tiles(sums.gram, 1, least_memory(sums, 1)), place)
    upper = np.zeros((23, 23))
    for i, r in enumerate(factor.edges):
        for j, s in list(enumerate(factor.edges))[i:]:
            upper[r, s] = factor.tile(i, j)
    system = c.gram + 2.0 * np.eye(23)
    assert np.array_equal(upper, np.triu(upper))
    np.testing.assert_allclose((upper * factor.units).T @ (upper * factor.units), system, rtol=1e-12, atol=1e-12)
    assert factor.frobenius == pytest.approx(np.linalg.norm(c.gram))
    assert factor.norm == pytest.approx(np.linalg.norm(system / factor.units / factor.units[:, None], 1))
    assert factor.top == pytest.approx(min(np.linalg.norm(system, 1), np.linalg.norm(c.gram) + 2.0))


def test_progress_ends_at_the_whole():
    seen = []
    tiled(centered(50), 1.0, 7, 0, progress=lambda done, whole: seen.append((done, whole)))
    done = [part for part, _ in seen]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(50**3 / 3)
    assert {whole for _, whole in seen} == {50**3 / 3}


def copied_feature(of=3, to=11, blur=0.0):
    rng = np.random.default_rng(0)
    phi = rng.integers(-5, 6, (200, 20)).astype(float)
    phi[:, to] = phi[:, of] + blur * rng.normal(size=200)
    phi[:, 7] = 2.0
    return Moments.from_rows(phi, phi[:, :1], Frame.identity(20, 1), Dense(1)).centered()


def test_a_dependent_feature_is_named():
    names = [f"x{j}" for j in range(20)]
    c = copied_feature()
    kept = Centered(**{**vars(c), "noise": np.full(20, -1.0), "gram": c.gram + np.diag(np.eye(20)[7])})
    with pytest.raises(SolveError, match=r"x11 is .*combination of others.*raise alpha, or drop x11") as error:
        tiled(kept, 0.0, 6, 0, names=names)
    assert "alpha 0" in str(error.value)
    nearly = copied_feature(blur=1e-8)
    kept = Centered(**{**vars(nearly), "gram": nearly.gram + np.diag(np.eye(20)[7])})
    with pytest.raises(SolveError, match=r"feature (3|11) is nearly a combination of others"):
        tiled(kept, 0.0, 6)


def test_a_constant_feature_gets_no_weight():
    c = copied_feature()
    with pytest.raises(SolveError, match="feature 7 does not vary"):
        tiled(c, 0.0, 6)
    ours, theirs = tiled(c, 1e-3, 6, 0), solve(c, 1e-3)
    assert ours.weights[7, 0] == 0.0
    np.testing.assert_allclose(ours.weights, theirs.weights, atol=1e-11)
    assert ours.effective_dof == pytest.approx(theirs.effective_dof, rel=1e-9)


def test_rounding_of_the_sums_is_warned_of():
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(300, 4))
    phi[:, 3] = phi[:, 2] + 5e-4 * rng.normal(size=300)
    frame = Frame.from_sample(phi, phi[:, :1], Dense(1))
    c = Moments.from_rows(phi, phi[:, :1], frame, Dense(1), precision="float32").centered()
    with pytest.warns(IllConditionedWarning, match="raise alpha"):
        tiled(c, 1e-9, 3)
    with pytest.warns(IllConditionedWarning, match="raise alpha"):
        solve(c, 1e-9)


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_alphas_that_are_refused(alpha):
    with pytest.raises(SolveError, match="alpha"):
        tiled(centered(3), alpha, 2)
