"""Moments add like the rows they sum: on integers against NumPy's int64, on real data bit for bit."""

import itertools
import threading
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.arrays import transposed_product
from streamfit.errors import ConfigError, MismatchError, ScaleError
from streamfit.features import RBF, Chain, Standardize
from streamfit.frame import BLOCK_ROWS, Frame, n_tiles, panels_of, tile_pairs, tile_size, tiles_at_once
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.solve import IllConditionedWarning, solve
from streamfit.targets import Dense, OneHot, Targets

D, K = 3, 2
PLAIN = Frame.identity(D, K)
INTEGER = Frame(
    np.array([2.0, 0.0, -1.0]), np.array([1, 0, -2], np.int32), np.array([0.0, 3.0]), np.array([0, 1], np.int32)
)
precisions = st.sampled_from(["float32", "float64"])


@st.composite
def shards(draw, max_rows=7):
    """Integer features, targets and weights: every product of theirs is exact in float32."""
    seed, n = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, max_rows))
    rng = np.random.default_rng(seed)
    phi, y, w = rng.integers(-9, 10, (n, D)), rng.integers(-9, 10, (n, K)), rng.integers(0, 4, n)
    return phi.astype(float), y.astype(float), w.astype(float)


def moments(shard, frame=PLAIN, precision="float64", targets: Targets | None = None, **kwargs):
    phi, y, w = shard
    targets = Dense(frame.n_targets) if targets is None else targets
    return Moments.from_rows(phi, y, frame, targets, weights=w, precision=precision, **kwargs)


def limbs(m):
    """Each sum as its exponent and bytes."""
    return {name: (s.top, [np.asarray(limb).tobytes() for limb in s.limbs]) for name, s in m._sums().items()}


def same_bits(a, b):
    return a == b and limbs(a) == limbs(b)


_rng = np.random.default_rng(0)
PHI = _rng.normal(size=(3 * BLOCK_ROWS, D)) * [1e-3, 1.0, 50.0] + [0.0, 30.0, 0.0]
REAL = PHI, PHI[:, :K] * 0.3 + _rng.normal(size=(len(PHI), K)), _rng.uniform(size=len(PHI))
SAMPLED = Frame.from_sample(PHI[:500], REAL[1][:500], Dense(K))


@given(shards(), precisions)
def test_integer_rows_give_the_integer_sums(shard, precision):
    phi, y, w = (a.astype(np.int64) for a in shard)
    m = moments(shard, precision=precision)
    assert m.n_rows == len(phi)
    assert m.weight.value() == w.sum()
    assert np.array_equal(m.sum_x.value(), w @ phi)
    assert np.array_equal(m.sum_y.value(), w @ y)
    assert np.array_equal(m.sum_yy.value(), w @ (y * y))
    assert np.array_equal(m.gram.value()[0], (phi * w[:, None]).T @ phi)
    assert np.array_equal(m.cross.value(), (y * w[:, None]).T @ phi)


@given(shards(), shards(), shards(), st.integers(-3, 3), precisions, st.sampled_from([PLAIN, INTEGER]))
def test_moments_add_and_scale_like_the_rows_they_sum(a, b, c, k, precision, frame):
    together = moments(tuple(np.concatenate(pair) for pair in zip(a, b, strict=True)), frame, precision)
    a, b, c = (moments(shard, frame, precision) for shard in (a, b, c))
    zero = Moments.zeros(frame, Dense(K), precision)
    assert same_bits(together, a + b)
    assert same_bits(a + b, b + a)
    assert same_bits((a + b) + c, a + (b + c))
    assert same_bits(a + zero, a)
    assert same_bits(a - a, zero)
    assert same_bits((a + b) - b, a)
    assert limbs((a + b) * k) == limbs(a * k + b * k)
    assert same_bits(2 * a, a * 2)


@given(shards(), precisions)
def test_a_row_weight_is_a_repetition(shard, precision):
    phi, y, w = shard
    times = w.astype(int)
    repeated = (phi.repeat(times, axis=0), y.repeat(times, axis=0), None)
    assert limbs(moments(shard, INTEGER, precision)) == limbs(moments(repeated, INTEGER, precision))


@given(st.lists(st.integers(0, len(PHI)), max_size=4), st.randoms(use_true_random=False), precisions)
def test_real_shards_add_bit_for_bit(cuts, random, precision):
    """One accumulator over all shards, or one each in any order, or one of them forgotten again: the same bytes."""
    edges = sorted({0, 1, BLOCK_ROWS + 1, len(PHI), *cuts})
    shards = [tuple(a[lo:hi] for a in REAL) for lo, hi in itertools.pairwise(edges)]
    random.shuffle(shards)
    sums = MomentsAccumulator(SAMPLED, Dense(K), precision)
    for phi, y, w in shards:
        sums.add(phi, y, weights=w)
    whole = sums.moments()
    first, *rest = [moments(shard, SAMPLED, precision) for shard in shards]
    assert same_bits(whole, sum(reversed(rest), first))
    assert same_bits(whole - first, sum(rest[1:], rest[0]))


@pytest.mark.parametrize("offset", [1000.0, 10_000.0])
def test_an_origin_saves_the_digits_of_float32(offset):
    rng = np.random.default_rng(3)
    phi = rng.normal(size=(5000, D)) + offset
    y = (phi - offset) @ rng.normal(size=(D, K)) + 0.1 * rng.normal(size=(5000, K))
    reference = np.linalg.lstsq(phi - phi.mean(axis=0), y - y.mean(axis=0), rcond=None)[0]

    def error(frame):
        weights = solve(moments((phi, y, None), frame, "float32"), 1e-9).weights
        return np.linalg.norm(weights - reference) / np.linalg.norm(reference)

    assert error(Frame.from_sample(phi[:100], y[:100], Dense(K))) < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        assert error(PLAIN) > 1e-3


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_float32_lose_nothing_where_products_are_of_float64(weighted):
    """Not even where an origin is taken from values of other binades, which float32 would round."""
    rng = np.random.default_rng(5)
    phi = (rng.normal(size=(3000, D)) * 2 + 5).astype(np.float32)
    y = phi @ rng.normal(size=(D, K)) + rng.normal(size=(3000, K))
    weights = rng.integers(1, 4, 3000).astype(float) if weighted else None
    frame = Frame.from_sample(phi[:300], y[:300], Dense(K))
    assert frame.origin.any()
    narrow, wide = (moments((each, y, weights), frame, "float64") for each in (phi, phi.astype(np.float64)))
    assert same_bits(narrow, wide)
    mean = np.average(phi.astype(np.float64), axis=0, weights=weights)
    z = phi.astype(np.float64) - mean
    gram = z.T @ (z if weights is None else z * weights[:, None])
    np.testing.assert_allclose(narrow.centered().gram, gram, rtol=1e-12, atol=1e-12 * np.abs(gram).max())


def test_centered_moments_are_those_about_the_means():
    phi, y, w = REAL
    c = moments(REAL, SAMPLED).centered()
    mx, my = np.average(phi, axis=0, weights=w), np.average(y, axis=0, weights=w)
    for point_x, point_y, sums in ((mx, my, c), (mx + 1.0, my - 2.0, c.about(mx + 1.0, my - 2.0))):
        u, v = phi - point_x, y - point_y
        np.testing.assert_allclose(sums.mean_x, point_x, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(sums.gram, (u * w[:, None]).T @ u, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(sums.cross, (u * w[:, None]).T @ v, rtol=1e-11, atol=1e-9)
        np.testing.assert_allclose(sums.ss_y, w @ v**2, rtol=1e-11)
    back = c.about(mx + 1.0, my - 2.0)
    assert back.weight == c.weight == pytest.approx(w.sum(), rel=1e-14)


def test_nothing_is_divided_by_no_weight():
    for empty in (Moments.zeros(PLAIN, Dense(K)), moments((np.ones((2, D)), np.ones((2, K)), np.zeros(2)))):
        with pytest.raises(MismatchError, match="positive total weight"):
            empty.centered()


@given(shards(), st.integers(1, 6), precisions, st.booleans())
def test_class_ids_are_dense_indicators(shard, n_classes, precision, weighted):
    phi, _, w = shard
    w = w if weighted else None
    ids = np.random.default_rng(len(phi)).integers(n_classes, size=len(phi))
    frame = Frame.identity(D, n_classes)
    sparse = moments((phi, ids, w), frame, precision, OneHot(n_classes))
    dense = moments((phi, np.eye(n_classes)[ids], w), frame, precision)
    assert limbs(sparse) == limbs(dense)


@pytest.mark.parametrize("d", [1, 5, 512, 513, 1100])
def test_tiles_cover_the_triangle(d):
    rng = np.random.default_rng(d)
    phi, y = rng.integers(-3, 4, (40, d)).astype(float), rng.integers(-3, 4, (40, 1)).astype(float)
    m = moments((phi, y, None), Frame.identity(d, 1), "float32")
    gram, tiles = phi.T @ phi, m.gram.value()
    assert tiles.shape == (n_tiles(d), tile_size(d), tile_size(d))
    for index, r, c in tile_pairs(d):
        assert np.array_equal(tiles[index, : r.stop - r.start, : c.stop - c.start], gram[r, c])
    np.testing.assert_allclose(m.centered().about(np.zeros(d), np.zeros(1)).gram, gram, rtol=0, atol=1e-10)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_threads_do_not_change_a_bit(precision):
    rng = np.random.default_rng(0)
    phi, y = rng.normal(size=(300, 1100)), rng.normal(size=(300, 1))
    frame = Frame.from_sample(phi, y, Dense(1))
    one, three = (MomentsAccumulator(frame, Dense(1), precision, n_threads=n) for n in (1, 3))
    one.add(phi, y)
    three.add(phi, y)
    assert same_bits(one.moments(), three.moments())


def test_a_refused_block_leaves_the_one_that_is_multiplied_alone(monkeypatch):
    """Two are refused while the first is at work: neither may be centred where it lies."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 1100)) + 100.0, rng.normal(size=(300, 1))
    frame = Frame.from_sample(x, y, Dense(1))
    expected = Moments.from_rows(x, y, frame, Dense(1), precision="float32")
    let_go = threading.Event()

    def held(*given, product=transposed_product):
        let_go.wait()
        return product(*given)

    monkeypatch.setattr("streamfit.moments.transposed_product", held)
    sums = MomentsAccumulator(frame, Dense(1), "float32", n_threads=2, overwrite=True)
    sums.add(x, y)
    for _ in range(2):
        with pytest.raises(ScaleError):
            sums.add(np.full_like(x, np.inf), y)
    let_go.set()
    assert same_bits(sums.moments(), expected)


@pytest.mark.parametrize("precision", ["float32", "float64", "tf32", "bf16"])
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n", [1, 3, 5, 700, BLOCK_ROWS + 7])
def test_neighbouring_tiles_at_once_have_the_bits_of_one_at_a_time(monkeypatch, precision, by_columns, weighted, n):
    """Also with few rows, for which BLAS has other kernels, and where the last tile is narrow."""
    rng, d = np.random.default_rng(n), 4 * 512 + 1
    x = rng.normal(size=(n, d)).astype("float64" if precision == "float64" else "float32")
    y, w, frame = rng.normal(size=(n, 1)), rng.uniform(0.5, 2.0, n) if weighted else None, Frame.identity(d, 1)
    x = np.asfortranarray(x) if by_columns else x

    def summed(n_threads):
        sums = MomentsAccumulator(frame, Dense(1), precision, n_threads=n_threads)
        runs = sums._runs(x[:BLOCK_ROWS])
        sums.add(x, y, weights=w)
        return sums.moments(), max(len(run) for run in runs)

    joined = n * 512**2 > 2**20
    found, longest = summed(1)
    threaded, longest_of_three = summed(3)
    monkeypatch.setattr("streamfit.moments.products_join", lambda rows, width: False)
    alone, one = summed(1)
    assert (longest, longest_of_three, one) == ((4, 4, 1) if joined else (1, 1, 1))
    assert found == alone
    assert threaded == alone


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [17, 700, BLOCK_ROWS])
def test_the_widest_products_have_the_bits_of_their_tiles(kind, n):
    """Of the edges that wide matrices are kept in, in both layouts."""
    rng, precision = np.random.default_rng(n), "float32" if kind is np.float32 else "float64"
    for rows in (x := rng.normal(size=(n, 1024 + 4096)).astype(kind), np.asfortranarray(x)):
        left, right = rows[:, :1024], rows[:, 1024:]
        whole = transposed_product(left, [right], precision)
        for edge in (512, 1024, 2048):
            for top, lo in itertools.product(range(0, 1024, edge), range(0, 4096, edge)):
                part = transposed_product(left[:, top : top + edge], [right[:, lo : lo + edge]], precision)
                assert np.array_equal(whole[top : top + edge, lo : lo + edge], part)


@pytest.mark.parametrize("d", [1, 512, 513, 1024, 1536, 2048, 2049, 4096, 4097, 9000])
@pytest.mark.parametrize("n_bands", [1, 2, 3])
def test_products_of_neighbours_are_each_tile_once(d, n_bands):
    """Rectangles of whole tiles, no more of them than are allowed, the largest first."""
    rows = np.empty((BLOCK_ROWS, 1))
    for panel, n_threads in itertools.product(panels_of(d, n_bands), (1, 2, 5)):
        sums = MomentsAccumulator(Frame.identity(d, 1), Dense(1), "float32", n_threads=n_threads, panel=panel)
        runs = sums._runs(rows)
        assert sorted(place.tile for run in runs for place in run) == list(range(len(panel.tiles())))
        most = tiles_at_once(len(panel.tiles()), tile_size(d), n_threads)
        for run in runs:
            assert len(run) <= most
            starts = sorted({place.rows.start for place in run}), sorted({place.columns.start for place in run})
            assert len(run) == len(starts[0]) * len(starts[1])
            for each in starts:
                assert each == list(range(each[0], each[-1] + 1, tile_size(d)))
            assert len(run) == 1 or all(place.rows != place.columns for place in run)
        assert [len(run) for run in runs] == sorted((len(run) for run in runs), reverse=True)


@pytest.mark.parametrize("precision", ["float32", "float64", "tf32", "bf16"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 30, 700, BLOCK_ROWS + 7])
def test_features_made_in_pieces_have_the_bits_of_all_at_once(precision, kind, n):
    """In both layouts, shifted or not, weighted or not, one thread or two, for targets of both kinds."""
    rng = np.random.default_rng(n)
    features = RBF(rng.normal(size=(70, 3)), 0.1)
    x = rng.normal(size=(n, 3)).astype(kind)
    several = [(rng.normal(size=(n, 2)), Dense(2)), (rng.integers(0, 4, n), OneHot(4))]
    for rows, (y, targets), w, shifted, n_threads in itertools.product(
        (x, np.asfortranarray(x)), several, (None, rng.random(n)), (False, True), (1, 2)
    ):
        phi = features(rows)
        frame = Frame.identity(70, targets.n_targets)
        if shifted:
            frame = replace(frame, origin=np.full(70, 0.5), exponents=np.full(70, -2, np.int32))
        sums = MomentsAccumulator(frame, targets, precision, n_threads=n_threads, overwrite=True)
        for lo in range(0, n, BLOCK_ROWS):  # blocks one after another, as a worker gives them
            part = slice(lo, lo + BLOCK_ROWS)
            sums.add(features.pieces(rows[part]), y[part], weights=None if w is None else w[part])
        at_once = MomentsAccumulator(frame, targets, precision)
        at_once.add(features.pieces(rows), y, weights=w)
        blocks = np.concatenate([features(rows[lo : lo + BLOCK_ROWS]) for lo in range(0, n, BLOCK_ROWS)])
        assert same_bits(sums.moments(), Moments.from_rows(blocks, y, frame, targets, weights=w, precision=precision))
        assert same_bits(at_once.moments(), Moments.from_rows(phi, y, frame, targets, weights=w, precision=precision))


@pytest.mark.parametrize("precision", ["float32", "float64", "tf32", "bf16"])
@pytest.mark.parametrize("d", [3, 70, 600])
@pytest.mark.parametrize("n", [5, 700, BLOCK_ROWS + 40])
def test_rows_that_lie_by_columns_have_the_same_bits(precision, d, n):
    """With gaps between columns, as wide tables are read; shifted or not, weighted or not, for targets of all kinds."""
    rng = np.random.default_rng(d)
    x = (rng.normal(size=(n, d)) + 0.5).astype(np.float64 if precision == "float64" else np.float32)
    columns = np.empty((d, n + 24), x.dtype)[:, :n].T
    several = [(rng.normal(size=(n, k)), Dense(k)) for k in (1, 3)] + [(rng.integers(0, 4, n), OneHot(4))]
    for (y, targets), w, shifted, overwrite in itertools.product(
        several, (None, rng.random(n)), (False, True), (False, True)
    ):
        frame = Frame.from_sample(x, y, targets) if shifted else Frame.identity(d, targets.n_targets)
        columns[...] = x
        sums = MomentsAccumulator(frame, targets, precision, overwrite=overwrite)
        sums.add(columns, y, weights=w)
        assert overwrite or np.array_equal(columns, x)
        assert same_bits(sums.moments(), Moments.from_rows(x, y, frame, targets, weights=w, precision=precision))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_block_that_is_prepared_while_the_last_is_multiplied_changes_no_bit(
    monkeypatch, precision, shifted, overwrite
):
    """Products are slowed down, so that each is still at work when the next block comes."""
    rng = np.random.default_rng(0)
    blocks = [(rng.normal(size=(50, 1100)).astype(np.float32), rng.normal(size=(50, 1))) for _ in range(4)]
    frame = Frame.from_sample(*blocks[0], Dense(1)) if shifted else Frame.identity(1100, 1)
    expected = sum((Moments.from_rows(x, y, frame, Dense(1), precision=precision) for x, y in blocks[1:]),
                   Moments.from_rows(*blocks[0], frame, Dense(1), precision=precision))  # fmt: skip
    done = []

    def slow(*given, product=transposed_product):
        time.sleep(0.005)
        done.append(product(*given))
        return done[-1]

    monkeypatch.setattr("streamfit.moments.transposed_product", slow)
    sums, waiting = MomentsAccumulator(frame, Dense(1), precision, n_threads=2, overwrite=overwrite), []
    for i, (x, y) in enumerate(blocks):
        sums.add(x, y)
        waiting.append(len(done) < (i + 1) * n_tiles(1100))
        if not overwrite:
            x[:] = np.nan  # the rows are the caller's again
    assert same_bits(sums.moments(), expected)
    assert any(waiting) == overwrite


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("targets", [Dense(K), OneHot(K)], ids=["dense", "one_hot"])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_backend_gives_numpys_moments_and_leaves_its_rows_alone(on, precision, kind, targets, weighted):
    rng = np.random.default_rng(1)
    phi = rng.integers(-9, 10, (50, D)).astype(kind)
    y = rng.integers(K, size=50) if targets.one_hot else rng.integers(-9, 10, (50, K)).astype(precision)
    w = rng.integers(0, 4, 50).astype(precision) if weighted else None
    frame = PLAIN if targets.one_hot else INTEGER
    theirs = moments((on(phi), on(y), None if w is None else on(w)), frame, precision, targets)
    ours = moments((phi, y, w), frame, precision, targets)
    assert same_bits((theirs + theirs * 2 - theirs * 2).to_host(), ours)
    np.testing.assert_array_equal(theirs.centered().gram, ours.centered().gram)


@pytest.mark.parametrize("precision", ["float32", "float64", "bf16"])
@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("shifted", [False, True])
def test_every_backend_adds_features_made_in_pieces(on, precision, kind, shifted):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 3)).astype(kind), rng.normal(size=(40, 1))
    features = Chain(Standardize.fit(x), RBF(rng.normal(size=(D, 3)), 0.3))
    frame = Frame.identity(D, 1)
    frame = replace(frame, origin=np.full(D, 0.5), exponents=np.full(D, -2, np.int32)) if shifted else frame
    found = []
    for place in (lambda array: array, on):
        there = place(x)
        sums = MomentsAccumulator(frame, Dense(1), precision, like=there)
        sums.add(features.like(there).pieces(there), place(y))
        found.append(sums.moments().to_host().centered())
    # Features differ in their last places, which bf16 may round to another neighbour.
    np.testing.assert_allclose(found[1].gram, found[0].gram, rtol=0.02 if precision == "bf16" else 1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1].cross, found[0].cross, rtol=0.02 if precision == "bf16" else 1e-4, atol=1e-4)


ONES, ONES_Y, IDS = np.ones((2, D)), np.ones((2, K)), np.array([0, 1])


@pytest.mark.parametrize(
    ("phi", "y", "w", "error"),
    [
        (np.ones((2, D + 1)), ONES_Y, None, MismatchError),
        (ONES, np.ones((3, K)), None, MismatchError),
        (ONES, np.ones((2, K + 1)), None, MismatchError),
        (ONES, ONES_Y, np.ones(1), MismatchError),
        (ONES, ONES_Y, np.ones((2, 1)), MismatchError),
        (ONES, IDS[:, None], None, MismatchError),
        (ONES, IDS * 0.5, None, MismatchError),
        (ONES, IDS + K - 1, None, ConfigError),
        (ONES, IDS - 1, None, ConfigError),
        (ONES, ONES_Y, np.array([1.0, -1.0]), ConfigError),
        (ONES, ONES_Y, np.array([1.0, np.nan]), ConfigError),
        (ONES * np.nan, ONES_Y, None, ScaleError),
        (ONES, ONES_Y * np.nan, None, ScaleError),
        (ONES, ONES_Y * 2.0**37, None, ScaleError),
        (ONES * 2.0**37, ONES_Y, None, ScaleError),
    ],
)
def test_a_refused_block_leaves_no_trace(phi, y, w, error):
    one_hot = y.shape == IDS.shape or y.shape == (2, 1)
    targets, good = (OneHot(K), (ONES, IDS)) if one_hot else (Dense(K), (ONES, ONES_Y))
    sums = MomentsAccumulator(PLAIN, targets, "float64")
    sums.add(*good)
    with pytest.raises(error):
        sums.add(phi, y, weights=w)
    sums.add(*good)
    once = moments((*good, None), targets=targets)
    assert same_bits(sums.moments(), once + once)


def test_moments_of_other_frames_precisions_or_targets_do_not_add():
    m = Moments.zeros(PLAIN, Dense(K))
    for frame, targets, precision in (
        (INTEGER, Dense(K), "float64"),
        (PLAIN, OneHot(K), "float64"),
        (PLAIN, Dense(K), "float32"),
    ):
        other = Moments.zeros(frame, targets, precision)
        with pytest.raises(MismatchError):
            m + other
        with pytest.raises(MismatchError):
            m - other
    with pytest.raises(MismatchError, match="targets"):
        Moments.zeros(PLAIN, Dense(K + 1))


def test_a_column_constant_in_the_sample_may_vary_later():
    """0.1 is no float32: what its rounding leaves must not become the column's unit."""
    rng = np.random.default_rng(5)
    sample, y = np.column_stack([rng.normal(size=100), np.full(100, 0.1)]), rng.normal(size=(30_000, 1))
    frame = Frame.from_sample(sample, y[:100], Dense(1))
    later = rng.normal(size=(30_000, 2))
    c = moments((later, y, None), frame).centered()
    np.testing.assert_allclose(c.gram, (later - c.mean_x).T @ (later - c.mean_x), rtol=1e-11, atol=1e-9)
