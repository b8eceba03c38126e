"""Memory that is used again must never be handed out while somebody still looks at it."""

import gc

import numpy as np

from streamfit.corpus.spare import Spares


def test_memory_comes_back_once_the_last_view_is_gone():
    spares = Spares(2)
    with spares.reused():
        block = spares.empty((4, 3), np.float32)
        where = block.__array_interface__["data"][0]
        view = block[1:].T
        view[...] = 7.0
        del block
        other = spares.empty((4, 3), np.float32)
        assert other.__array_interface__["data"][0] != where, "a view of the first is left"
        other[...] = 0.0
        assert (view == 7.0).all()
        del view
        gc.collect()
        assert spares.empty((4, 3), np.float32).__array_interface__["data"][0] == where


def test_other_sizes_get_memory_of_their_own():
    spares = Spares(2)
    with spares.reused():
        del (first := {"block": spares.empty((4, 3), np.float32)})["block"]
        assert not first
        larger = spares.empty((5, 3), np.float64)
        larger[...] = 1.0
        assert larger.flags.writeable
        assert larger.flags.c_contiguous
        assert larger.sum() == 15.0


def test_a_little_less_gets_the_memory_of_a_larger_one_back_whole():
    """As for the last row group of a file; what is far too large, or too small, is left for others."""
    spares = Spares(3)
    with spares.reused():
        held = [spares.empty((size,), np.uint8) for size in (100, 1000, 90_000)]
        where = [array.__array_interface__["data"][0] for array in held]
        held.clear()
        gc.collect()
        part = spares.empty((600,), np.uint8)
        assert part.__array_interface__["data"][0] == where[1]
        assert len(part) == 600
        assert len(spares._free) == 2
        del part
        assert spares.empty((1000,), np.uint8).__array_interface__["data"][0] == where[1]
        assert spares.empty((5000,), np.uint8).__array_interface__["data"][0] not in where
        assert sorted(map(len, spares._free)) == [1000, 5000, 90_000], "the smallest made room"


def test_no_more_is_kept_than_the_limit_and_nothing_once_all_have_left():
    spares = Spares(2)
    with spares.reused():
        with spares.reused():
            blocks = [spares.empty((8,), np.float64) for _ in range(5)]
        late = blocks.pop()
        del blocks
        gc.collect()
        assert len(spares._free) == 2
    assert not spares._free
    del late
    gc.collect()
    assert not spares._free
    del (block := {"one": spares.empty((8,), np.float64)})["one"]
    assert not block
    assert not spares._free
