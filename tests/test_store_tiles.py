"""Tiles of a store against its whole sums, bit for bit, and the solve from them against the solve in memory."""

import shutil
import tracemalloc

import numpy as np
import pytest
from store_helpers import K, add, header_of, leave_to_the_disk, moved, rows_of, shard_of

from pipelines import bench_out_of_core
from streamfit.errors import MismatchError, PlanError, SolveError, StoreError
from streamfit.exact import COARSE
from streamfit.frame import tile_size
from streamfit.moments import Moments
from streamfit.plan import PROCESS_BYTES
from streamfit.solve.ridge import solve
from streamfit.solve.tiles import plan_tiles, tile_edges
from streamfit.store import Mix, Store
from streamfit.store.out_of_core import plan_tiled, solve_tiled
from streamfit.store.tiles import Scratch, StoreTiles
from streamfit.targets import OneHot

D = 600
"""Two rows of tiles, of 512 and 88."""


@pytest.fixture(autouse=True)
def _unsynced(monkeypatch):
    leave_to_the_disk(monkeypatch)


@pytest.fixture
def make(tmp_path):
    """Makes stores with a segment a source; row weights and an outlier may be given."""

    def made(precision="float64", sources=("a", "b"), targets=None, outlier=None, d=D, **changes):
        header = header_of(precision, targets, n_features=d, n_folds=1)
        store = Store.create(tmp_path / "store", moved(header, **changes) if changes else header)
        for number, source in enumerate(sources):
            x, y, w = rows_of(header, seed=number)
            x[:, 7] = 3.0  # does not vary
            if outlier is not None and number == 0:
                x[0, outlier] = 4e6
            moments = Moments.from_rows(x, y, store.header.frame, header.targets, weights=w, precision=precision)
            segment = store.write_segment(moments, [shard_of(number, source)], [len(x)])
            store.commit([segment])
        return store

    return made


def whole(source, n_features):
    """The matrix that the tiles are of."""
    out = np.empty((n_features, n_features))
    edges = tile_edges(n_features, source.edge)
    for i, r in enumerate(edges):
        for j, c in list(enumerate(edges))[i:]:
            tile = source.read(i, j)
            out[r, c], out[c, r] = tile, tile.T
    return out


def cleared(c):
    """As `solve` reads sums: features that do not vary are zero."""
    constant = np.diag(c.gram) <= c.noise
    gram, cross = c.gram.copy(), c.cross.copy()
    gram[constant, :] = gram[:, constant] = cross[constant, :] = 0.0
    return gram, cross


MIXES = {
    "plain": None,
    "whole factors": Mix.parse(["source:a=2"]),
    "factors": Mix.parse(["source:a=0.3"]),
    "one left out": Mix.parse(["source:a=0"]),
}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_tiles_are_the_sum_bit_for_bit(make, precision, mix):
    store = make(precision, sources=("a", "b", "b"))
    c = store.moments(mix=mix).centered()
    source = StoreTiles(store, mix)
    gram, cross = cleared(c)
    sums = source.sums()
    if precision == "float32":
        assert not gram[7].any()
    assert gram[6].any()
    assert np.array_equal(whole(source, D), gram)
    assert np.array_equal(sums.cross(slice(0, K)), cross)
    assert np.array_equal(sums.cross(slice(1, 2)), cross[:, 1:2])
    assert np.array_equal(sums.diagonal, np.diag(gram))
    for name in ("mean_x", "mean_y", "ss_y", "noise"):
        assert np.array_equal(getattr(sums, name), getattr(c, name)), name


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_tiles_about_zero(make, precision):
    store = make(precision)
    c = store.moments().centered()
    c = c.about(np.zeros(D), np.zeros(K))
    source = StoreTiles(store, fit_intercept=False)
    sums = source.sums()
    assert np.array_equal(whole(source, D), c.gram)
    assert np.array_equal(sums.cross(slice(0, K)), c.cross)
    assert np.array_equal(sums.diagonal, np.diag(c.gram))
    assert np.array_equal(sums.ss_y, c.ss_y)
    assert not sums.mean_x.any()
    assert not sums.mean_y.any()


@pytest.mark.parametrize(
    ("outlier", "precision", "mix"),
    [(0, "float64", "plain"), (D - 1, "float64", "factors"), (0, "float64", "one left out"), (0, "float32", "factors")],
)
def test_sums_that_ran_out_of_room(make, outlier, precision, mix):
    """One feature takes a further limb, which makes sums of three where there were two, in every tile."""
    store = make(precision, outlier=outlier, exponents=np.zeros(D, np.int32), sources=("a", "b", "c"))
    tops = [store.read(segment).gram.top for segment in store.head().segments]
    assert (tops[0] == COARSE, tops[1] == COARSE) == (True, False)
    gram, cross = cleared(store.moments(mix=MIXES[mix]).centered())
    source = StoreTiles(store, MIXES[mix])
    assert np.array_equal(whole(source, D), gram)
    np.testing.assert_allclose(source.sums().cross(slice(0, K)), cross, rtol=1e-15)


def test_class_ids(make):
    store = make(targets=OneHot(K))
    gram, cross = cleared(store.moments().centered())
    source = StoreTiles(store)
    assert np.array_equal(whole(source, D), gram)
    assert np.array_equal(source.sums().cross(slice(0, K)), cross)


def test_a_matrix_of_one_tile(tmp_path):
    store = Store.create(tmp_path / "store", header_of(n_folds=1))
    add(store, seed=1)
    c = store.moments().centered()
    assert np.array_equal(StoreTiles(store).read(0, 0), c.gram)
    found = solve_tiled(store, 1.0, memory_bytes=2**30, scratch=tmp_path / "scratch")
    np.testing.assert_allclose(found.weights, solve(c, 1.0).weights, rtol=1e-12)


def test_a_chunk_that_is_missing_or_damaged(make):
    store = make("float32", sources=("a",))
    folder = store.place.local / "segments" / store.head().segments[0].id / "gram"
    chunk = folder / "c" / "1" / "0" / "0"
    source, data = StoreTiles(store), chunk.read_bytes()
    chunk.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    with pytest.raises(StoreError, match="streamfit verify"):
        source.read(0, 1)
    assert source.read(0, 0).shape == (512, 512)
    chunk.unlink()
    with pytest.raises(StoreError, match=r"c/1/0/0 is missing"):
        StoreTiles(store)
    # Deleted since it was opened, as a collection does: it must not count as zeros.
    with pytest.raises(StoreError, match=r"c/1/0/0 is missing"):
        source.read(0, 1)
    chunk.write_bytes(data)
    fresh = StoreTiles(store)
    (folder.parent / "sum_y" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="sum_y/c/0 is missing"):
        fresh.sums()


def test_stores_without_sums(make, tmp_path):
    with pytest.raises(MismatchError, match="without rows"):
        StoreTiles(Store.create(tmp_path / "empty", header_of()))
    store = make(sources=("a",))
    with pytest.raises(MismatchError, match="without rows"):
        StoreTiles(store, Mix.parse(["source:a=0"]))
    shutil.rmtree(store.place.local / "segments" / store.head().segments[0].id / "sum_x")
    with pytest.raises(StoreError):
        StoreTiles(store)


def least(store):
    """The least memory that a plan for a store accepts."""
    tiles = StoreTiles(store)
    t = -(-tiles.n_features // tiles.edge)
    work = 8 * tiles.edge**2 * (t + tiles.work_tiles)
    return PROCESS_BYTES + work + 8 * tiles.n_features * (400 + 10 + store.header.frame.n_targets)


@pytest.mark.parametrize(
    ("precision", "fit_intercept", "mix"),
    [("float32", True, None), ("float64", True, Mix.parse(["source:a=0.3"])), ("float64", False, None)],
)
def test_the_solve_is_the_one_in_memory(make, tmp_path, precision, fit_intercept, mix):
    store = make(precision, d=1030)
    d, alpha, seen = 1030, 300.0, []
    theirs = solve(store.moments(mix=mix), alpha, fit_intercept=fit_intercept)
    plan = plan_tiled(store, memory_bytes=least(store))
    assert plan.n_rows == 3
    assert len(plan.panels) > 1
    ours = solve_tiled(
        store,
        alpha,
        memory_bytes=least(store),
        scratch=tmp_path / "scratch",
        fit_intercept=fit_intercept,
        mix=mix,
        progress=lambda done, whole: seen.append(done / whole),
    )
    assert np.linalg.norm(ours.weights - theirs.weights) <= 1e-12 * np.linalg.norm(theirs.weights)
    np.testing.assert_allclose(ours.intercept, theirs.intercept, rtol=1e-11, atol=1e-11)
    assert ours.certificate.relative_gradient < 1e-14
    assert 0.4 * theirs.certificate.strong_convexity <= ours.certificate.strong_convexity
    assert ours.certificate.strong_convexity <= theirs.certificate.strong_convexity * (1 + 1e-9)
    assert ours.certificate.loss == pytest.approx(theirs.certificate.loss, rel=1e-9)
    assert abs(ours.effective_dof - theirs.effective_dof) <= 3 * np.sqrt(2 * d / 64)
    assert seen[-1] == pytest.approx(1.0)
    assert not list((tmp_path / "scratch").iterdir())


def test_memory_stays_within_the_plan(make, tmp_path):
    store = make("float32", d=1600)
    memory = least(store)
    plan = plan_tiled(store, memory_bytes=memory)
    assert plan.memory_bytes - PROCESS_BYTES < 2 * 8 * 1600**2
    tracemalloc.start()
    try:
        solve_tiled(store, 300.0, memory_bytes=memory, scratch=tmp_path / "scratch")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What the table of features' names and Zarr's own objects take is of the process.
    assert peak <= plan.memory_bytes - PROCESS_BYTES + 2**20


def test_too_little_memory_or_disk(make, tmp_path, monkeypatch):
    store = make("float32")
    with pytest.raises(PlanError, match=r"expected at least .* GB|MB, for a row of 2 tiles"):
        solve_tiled(store, 1.0, memory_bytes=PROCESS_BYTES)
    plan = plan_tiled(store, memory_bytes=least(store))
    assert plan.scratch_bytes > 0
    usage = shutil.disk_usage(tmp_path)._replace(free=plan.scratch_bytes - 1)
    monkeypatch.setattr("streamfit.store.tiles.shutil.disk_usage", lambda _: usage)
    with pytest.raises(PlanError, match=r"free at .*name another scratch folder"):
        solve_tiled(store, 1.0, memory_bytes=least(store), scratch=tmp_path)


def test_scratch_goes_after_a_failure_too(make, tmp_path):
    store = make("float32")
    with pytest.raises(SolveError, match=r"linear\[7\] does not vary|x7|feature"):
        solve_tiled(store, 0.0, memory_bytes=least(store), scratch=tmp_path / "scratch")
    assert not list((tmp_path / "scratch").iterdir())


def test_scratch_tiles(tmp_path):
    class Source:
        n_features, edge, work_tiles, stored_tiles = 25, 10, 3, 1

    plan = plan_tiles(Source(), 1, 2**30)
    rng = np.random.default_rng(0)
    tiles = {(0, 1): rng.normal(size=(10, 10)), (1, 2): rng.normal(size=(10, 5)), (2, 2): np.zeros((5, 5))}
    with Scratch(plan, tmp_path / "new" / "folder") as scratch:
        for (i, j), tile in tiles.items():
            scratch.write(i, j, tile)
        for (i, j), tile in tiles.items():
            assert np.array_equal(scratch.read(i, j), tile)
        with pytest.raises(StoreError, match=r"\(0, 2\) .* is missing"):
            scratch.read(0, 2)
        (chunk,) = (tmp_path / "new" / "folder").glob("*/factor.zarr/c/0/1")
        data = chunk.read_bytes()
        chunk.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
        with pytest.raises(StoreError, match="scratch tiles in"):
            scratch.read(0, 1)
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="scratch tiles in"):
        Scratch(plan, tmp_path / "file")


def test_stores_of_triangles(tmp_path):
    header = header_of(n_folds=1, statistic="qr")
    x, y, w = rows_of(header)
    rows = header.accumulator()
    rows.add(x, y, weights=w)
    store = Store.create(tmp_path / "store", header)
    store.commit([store.write_segment(rows.moments(), [shard_of(1)], [len(x)])])
    with pytest.raises(MismatchError, match="statistic 'gram'"):
        StoreTiles(store)


def test_the_benchmark_on_a_small_scale(tmp_path):
    """Its steps without processes of their own: what the system limits there is for the slow test."""
    bench_out_of_core.build(tmp_path / "store", 600, n_groups=2, group_rows=300)
    store = Store(tmp_path / "store")
    solution = solve_tiled(store, 1.0, memory_bytes=least(store), scratch=tmp_path / "scratch")
    assert bench_out_of_core.sample_of_equations(tmp_path / "store", solution) < 1e-12
    solution.weights[:, 0] *= 1.001
    assert bench_out_of_core.sample_of_equations(tmp_path / "store", solution) > 1e-6
    assert min(bench_out_of_core.blas_speeds(64)) > 0


@pytest.mark.slow
def test_the_benchmark_within_a_limit_of_the_system(tmp_path):
    found = bench_out_of_core.main(3000, 570 * 10**6, n_groups=2, group_rows=1000, folder=tmp_path)
    assert found["scratch_bytes"] > 0
    assert found["peak_bytes"] <= found["planned_bytes"] < found["limit_bytes"]
    assert found["certificate"]["relative_gradient"] < 1e-14
    assert found["residual_of_sampled_equations"] < 1e-12
    assert found["certificate"]["unique"]


def test_tiles_are_those_that_are_stored():
    assert [tile_size(d) for d in (D, 1030, 1600)] == [512] * 3
