"""A slot is written only when nothing reads it: told by a transport whose copies and uses end as late as they may."""

import numpy as np
import pytest

from streamfit.engine.feed import fed


class Late:
    """Copies happen when somebody waits for them, computations when their slot is waited for, and not before."""

    def __init__(self, n_slots=2):
        self.host, self.device = [None] * n_slots, [None] * n_slots
        self.copies, self.pending, self.log, self.results = set(), {}, [], {}

    def finish_use(self, slot):
        for tag, held in self.pending.pop(slot, []):
            self.finish_copy(slot)
            self.results[tag] = held.copy()  # what the computation reads when it runs at last

    def finish_copy(self, slot):
        if slot in self.copies:
            self.copies.discard(slot)
            self.device[slot][...] = self.host[slot]

    def multiply(self, tag, array):
        slot = next(i for i, held in enumerate(self.device) if held is array)
        self.pending.setdefault(slot, []).append((tag, array))
        self.log.append(("multiply", tag))

    def wait_for_copy(self, slot):
        self.finish_copy(slot)

    def stage(self, slot, arrays):
        if self.host[slot] is None:
            self.host[slot], self.device[slot] = np.empty_like(arrays[0]), np.full_like(arrays[0], -1.0)
        self.host[slot][...] = arrays[0]
        self.log.append(("stage", int(arrays[0][0])))

    def wait_for_use(self, slot):
        self.finish_use(slot)

    def copy(self, slot):
        self.finish_copy(slot)  # copies run one after another
        self.copies.add(slot)
        self.log.append(("copy", int(self.host[slot][0])))

    def arrays(self, slot):
        return [self.device[slot]]

    def used(self, slot):
        self.log.append(("used", self.pending[slot][-1][0]))


def run(transport, n=9):
    source = np.empty(4)

    def blocks():
        for i in range(n):
            source[:] = i  # a reader that writes its memory again
            yield i, (source,)
            yield f"after {i}", None

    tags = []
    for tag, arrays in fed(blocks(), transport):
        tags.append(tag)
        if arrays is not None:
            transport.multiply(tag, arrays[0])
    for slot in list(transport.pending):
        transport.finish_use(slot)
    return tags


def test_every_block_is_read_as_it_was():
    transport = Late()
    tags = run(transport)
    assert tags == [t for i in range(9) for t in (i, f"after {i}")]
    assert {i: r.tolist() for i, r in transport.results.items()} == {i: [float(i)] * 4 for i in range(9)}


@pytest.mark.parametrize("forgotten", ["wait_for_copy", "wait_for_use"])
def test_the_transport_tells_when_a_wait_is_left_out(forgotten):
    transport = Late()
    setattr(transport, forgotten, lambda slot: None)
    run(transport)
    assert any(r.tolist() != [float(i)] * 4 for i, r in transport.results.items())


def test_the_next_block_is_copied_before_the_present_one_is_multiplied():
    transport = Late()
    for tag, arrays in fed(((i, (np.full(3, float(i)),)) for i in range(5)), transport):
        transport.multiply(tag, arrays[0])
    at = {entry: i for i, entry in enumerate(transport.log)}
    for i in range(4):
        assert at["copy", i + 1] < at["multiply", i] < at["used", i]
    for i in range(3):
        assert at["used", i] < at["stage", i + 2]


def test_the_host_gets_its_own_arrays():
    x = np.ones(3)
    ((tag, arrays),) = fed([("a", (x, None))], None)
    assert tag == "a"
    assert arrays[0] is x
    assert arrays[1] is None
