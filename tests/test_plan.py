"""A plan is whole numbers: groups against brute force, bytes against the arrays that are really made."""

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.corpus import Source
from streamfit.engine.run import decoding_of
from streamfit.errors import PlanError
from streamfit.frame import BLOCK_ROWS, Frame, panels_of, tile_size, tiles_at_once
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.plan import PROCESS_BYTES, Group, Plan, Shard, counted_twice, default_group_rows, make_groups
from streamfit.targets import Dense, OneHot


def shard(i, rows=10, source="a", content=None):
    content_id = hashlib.sha256(str(i if content is None else content).encode()).hexdigest()
    return Shard(f"part-{i:04d}", f"/data/part-{i:04d}", 0, rows, 8 * rows, rows, content_id, source)


corpora = st.lists(st.tuples(st.integers(0, 40), st.sampled_from("ab")), max_size=25).map(
    lambda pairs: [shard(i, rows, source) for i, (rows, source) in enumerate(pairs)]
)


@given(corpora, st.integers(1, 4), st.integers(1, 60), st.randoms(use_true_random=False))
def test_groups_partition_the_shards(shards, n_folds, group_rows, random):
    """Each shard once, one fold and source a group, no group over its size unless it is one large shard."""
    groups = make_groups(shards, n_folds, group_rows)
    assert Counter(s for g in groups for s in g.shards) == Counter(shards)
    for group in groups:
        assert {(s.fold(n_folds), s.source) for s in group.shards} == {(group.fold, group.source)}
        assert group.planned_rows <= group_rows or len(group.shards) == 1
    assert make_groups(random.sample(shards, len(shards)), n_folds, group_rows) == groups


@given(corpora, st.integers(1, 3), st.integers(1, 60))
def test_groups_are_those_of_brute_force(shards, n_folds, group_rows):
    """Per fold and source, in the order of keys, each group is the longest run that still fits."""
    expected = []
    for fold in range(n_folds):
        for source in "ab":
            left = sorted((s for s in shards if s.fold(n_folds) == fold and s.source == source), key=lambda s: s.key)
            while left:
                fits = [n for n in range(1, len(left) + 1) if sum(s.planned_rows for s in left[:n]) <= group_rows]
                n = max(fits, default=1)
                expected.append((fold, source, tuple(left[:n])))
                left = left[n:]
    assert [(g.fold, g.source, g.shards) for g in make_groups(shards, n_folds, group_rows)] == expected


def test_groups_of_nothing():
    assert make_groups([], 2, 10) == []
    for folds, rows in ((0, 10), (2, 0)):
        with pytest.raises(PlanError, match="at least 1"):
            make_groups([shard(0)], folds, rows)


def test_the_fold_is_a_function_of_the_content_alone():
    one = shard(3)
    moved = replace(one, key="elsewhere", uri="s3://x", start=5, stop=9, size=1, planned_rows=7, source="b")
    assert all(one.fold(n) == moved.fold(n) for n in range(1, 10))
    counts = Counter(shard(i).fold(4) for i in range(2000))
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 400


def plan(n_features=5, n_targets=2, precision="float64", one_hot=False, rows=(10, 30)):
    groups = make_groups([shard(i, n) for i, n in enumerate(rows)], 1, 100)
    return Plan(tuple(groups), n_features, n_targets, 4, precision, one_hot, 3, 1000)


@pytest.mark.parametrize(("d", "k"), [(1, 1), (5, 2), (512, 1), (513, 3), (1100, 7)])
@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_projected_bytes_are_those_of_the_moments(d, k, precision, one_hot):
    """The two matrices, which are all but a few vectors of the sums, to the byte."""
    targets = OneHot(k) if one_hot else Dense(k)
    m = Moments.zeros(Frame.identity(d, k), targets, precision)
    assert plan(d, k, precision, one_hot).sum_bytes == sum(a.nbytes for s in (m.gram, m.cross) for a in s.limbs)


def test_memory_and_work_are_exact_integers():
    p = plan()
    assert (p.n_shards, p.n_rows, p.read_bytes) == (2, 40, 320)
    assert p.sum_bytes == 8 * 2 * (25 + 10)
    rows = 4 * (4 * 8 + 2 * 8) + 8 * 5 + 4 * 8 * 2 + 32 * 4  # four blocks as they are read, features, targets, inputs
    assert p.worker_bytes == PROCESS_BYTES + 560 + 8 * 2 * 5 * 2 + BLOCK_ROWS * rows + 8 * 25 + 2000
    assert p.solve_bytes(3) == PROCESS_BYTES + 5 * 560 + 8 * (10 * 25 + 9 * 10)
    assert p.flops_per_row == 5 * 6 + 2 * 5 * 2
    assert plan(one_hot=True).flops_per_row == 5 * 6 + 2 * 5
    assert plan(precision="float32").sum_bytes == 8 * (25 + 10)
    assert all(type(n) is int for n in (p.worker_bytes, p.solve_bytes(2), p.flops_per_row, default_group_rows(5, 2)))


def test_threads_hold_a_product_each_and_a_block_more():
    wide = replace(plan(n_features=20_000, n_targets=1), n_inputs=20_000, identity=True)
    two, many = (wide.worked_by(n, on_gpu=False) for n in (2, 32))
    block, tile = 8 * BLOCK_ROWS * 20_000, 8 * 2048
    assert tiles_at_once(55, 2048, 32) == 1
    assert two.worker_bytes == wide.worker_bytes + block + tile * 4096
    assert many.worker_bytes == wide.worker_bytes + block + 32 * tile * 2048 - tile * 4096
    weighted = replace(wide, weighted=True)
    assert weighted.worker_bytes == wide.worker_bytes + block
    assert weighted.worked_by(2, on_gpu=False).worker_bytes == two.worker_bytes + 2 * block
    assert wide.worked_by(16, on_gpu=True).worker_bytes == wide.worker_bytes - tile * 4096


def test_features_made_in_pieces_lie_where_they_are_multiplied_alone():
    """Of float32 rows in float64: without pieces, as they are made as well."""
    wide = replace(plan(n_features=20_000, n_targets=1), n_inputs=10, row_item=4)
    for n_threads, n_blocks in ((1, 1), (2, 2)):
        worked = wide.worked_by(n_threads, on_gpu=False)
        made = replace(worked, in_pieces=True)
        assert worked.worker_bytes - made.worker_bytes == n_blocks * BLOCK_ROWS * 20_000 * 4


@pytest.mark.parametrize("d", [600, 1536, 2048, 2049, 4096, 4097, 9000])
@pytest.mark.parametrize("n_bands", [1, 2, 3])
def test_the_product_of_a_thread_is_the_largest_of_a_panel(d, n_bands):
    """Or two tiles more, where a panel has its last band narrow; never less."""
    for n_threads in (1, 2, 8):
        worked = replace(plan(n_features=d, n_targets=1), n_bands=n_bands, n_threads=n_threads)
        largest = 0
        for panel in panels_of(d, n_bands):
            frame = Frame.identity(d, 1)
            sums = MomentsAccumulator(frame, Dense(1), "float64", n_threads=n_threads, panel=panel)
            largest = max([largest, *(len(run) for run in sums._runs(np.empty((BLOCK_ROWS, 1))))])
        assert 0 <= worked._product_bytes / (8 * tile_size(d) ** 2) - largest <= 2


def test_what_decoding_takes_is_that_of_the_group_that_takes_most():
    """A source as wide tables are: three of the largest row groups, and their bytes where rows are left out."""

    class Held(Source):
        def shards(self):
            return []

        def read(self, shard):
            return iter(())

        def positions(self, shard, column, values):
            return ()

        def decode_bytes(self, shards, row_bytes):
            rows, size = (max((getattr(s, name) for s in shards), default=0) for name in ("planned_rows", "size"))
            whole = not any(s.without for s in shards)
            return min(3, len(shards)) * (row_bytes * rows if whole else row_bytes * rows + size)

    rng = np.random.default_rng(0)
    for _ in range(50):
        groups = [
            Group(0, "t", tuple(
                Shard(f"{g}-{i}", "", 0, 1, size, rows, f"{g}-{i}", "t", without=(1,) * (g % 3 == 0))
                for i, (size, rows) in enumerate(rng.integers(1, 99, (rng.integers(1, 9), 2)).tolist())))
            for g in range(rng.integers(1, 12))
        ]  # fmt: skip
        expected = max(Held().decode_bytes(group.shards, 7) for group in groups)
        assert decoding_of(Held(), groups, 7) == expected
    assert decoding_of(Held(), [], 7) == 0


def test_a_plan_that_does_not_fit_is_refused_with_both_numbers():
    p = plan(n_features=20_000)
    p.check(None, None, 2)
    p.check(p.worker_bytes, p.solve_bytes(2), 2)
    with pytest.raises(
        PlanError, match=r"needs [\d.]+ GB for a worker \([\d.]+ [GM]B in \d+ panels\), with 100 MB there"
    ):
        p.check(10**8, None, 2)
    with pytest.raises(PlanError, match=r"needs [\d.]+ GB for the solve, with [\d.]+ GB there"):
        p.check(p.worker_bytes, p.solve_bytes(2) - 1, 2)


def test_panels_are_solved_on_disk_and_the_plan_says_so():
    whole = plan(n_features=20_000)
    cut = whole.within(whole.worker_bytes // 2)
    assert "for the solve" in whole.lines(2)[-1]
    assert cut.n_bands > 1
    assert "the solve on disk" in cut.lines(2)[-1]


def test_the_plan_reads_as_text():
    lines = "\n".join(plan().lines(2))
    for fact in ("2 shards", "320 B", "about 40 rows", "1 groups", "5 features x 2 targets in float64", "3 workers"):
        assert fact in lines


@pytest.mark.parametrize(("d", "k"), [(1, 1), (1000, 1), (10**6, 10**5)])
def test_the_default_group_is_at_least_a_block(d, k):
    assert default_group_rows(d, k) >= BLOCK_ROWS
    assert default_group_rows(2 * d, k) <= default_group_rows(d, k)


def test_repeated_content_is_counted_once():
    first, other, again, third = shard(0), shard(1), shard(2, content=0), shard(3, content=0)
    unique, repeats = counted_twice([first, other, again, third])
    assert unique == [first, other]
    assert repeats == [(again, first), (third, first)]
    assert counted_twice([]) == ([], [])
    assert again.fold(5) == third.fold(5) == first.fold(5)


def test_only_plans_of_tokens_speak_of_a_language_model():
    """Classes of a table are one-hot as well, and have none."""
    classes = Plan((), 10, 3, 10, "float32", one_hot=True, n_workers=1, feature_bytes=0)
    assert "language model" not in "\n".join(classes.lines(5))
    assert "language model" in "\n".join(replace(classes, tokens=True).lines(5))
