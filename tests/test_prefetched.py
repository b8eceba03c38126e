"""Blocks that wait between the reader and the sums: how many, and what becomes of the reader when nobody takes them."""

import threading
import time

import numpy as np
import pytest

from streamfit.corpus import Rows, Source
from streamfit.engine.work import PREFETCH, prefetched
from streamfit.errors import ShardError
from streamfit.plan import Shard


class Counted(Source):
    """Shards of many blocks; it knows how many were asked for."""

    def __init__(self, n_shards, n_blocks, held=0, bad=""):
        self.n_shards, self.n_blocks, self.held, self.bad, self.made = n_shards, n_blocks, held, bad, 0

    def shards(self):
        return [Shard(f"{i}", f"{i}", 0, 1, 8, self.n_blocks, f"{i:064x}", "counted") for i in range(self.n_shards)]

    def positions(self, shard, column, values):
        return ()

    def blocks_held(self, shard):
        return self.held

    def read(self, shard):
        for i in range(self.n_blocks):
            if (shard.key, i) == (self.bad, 1):
                raise ShardError(f"{shard.key}: bad", "good")
            self.made += 1
            yield Rows(np.array([[float(shard.key), i]]), np.zeros((1, 1)))


def made_by(source, expected):
    """Blocks that are made once there are as many as expected, and time for more."""
    deadline = time.monotonic() + 30
    while source.made < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return source.made


def readers():
    return {thread for thread in threading.enumerate() if thread.name == "streamfit-reader"}


@pytest.mark.parametrize(("held", "waiting"), [(0, PREFETCH), (3, 3)])
def test_the_reader_is_as_far_ahead_as_it_may_be(held, waiting):
    """What is taken, what waits, and one more that is made and has no room: words about a shard take none."""
    source = Counted(3, 3, held)
    found = prefetched(source, source.shards(), skip=False)
    taken = []
    for shard, rows in found:
        if rows is not None:
            taken.append((shard.key, rows.x.tolist()))
            expected = min(9, len(taken) + waiting + 1)
            assert made_by(source, expected) == expected
    assert taken == [(str(s), [[float(s), float(b)]]) for s in range(3) for b in range(3)]


def test_a_reader_that_nobody_listens_to_ends():
    source = Counted(2, 5)
    found, others = prefetched(source, source.shards(), skip=False), readers()
    next(found), next(found)
    assert len(readers() - others) == 1
    found.close()
    assert not readers() - others
    assert source.made < 10


def test_a_fault_comes_after_the_blocks_before_it():
    source = Counted(2, 3, bad="1")
    found = prefetched(source, source.shards(), skip=False)
    taken = [next(found)[1] for _ in range(6)]
    with pytest.raises(ShardError, match="1: bad"):
        next(found)
    assert [rows is None for rows in taken] == [True, False, False, False, True, False]
    skipped = list(prefetched(source, source.shards(), skip=True))
    assert [type(item).__name__ for _, item in skipped] == ["NoneType", "Rows", "Rows", "Rows", "ShardError"]
    fault = skipped[-1][1]
    assert (fault.__traceback__, fault.__cause__, fault.__context__) == (None, None, None), "which would hold rows"
