"""A GridSum is an integer: its oracle is Python's own integers, and equal integers have equal bytes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfit.errors import MismatchError, ScaleError
from streamfit.exact import BASE, COARSE, DIGIT_BITS, FINE, MAX_ADDS, GridAccumulator, GridSum, canonical

HALF = 2.0 ** (DIGIT_BITS - 1)
STEP = {1: Fraction(2) ** BASE, 2: Fraction(2) ** FINE}

numbers = st.builds(math.ldexp, st.integers(-(2**53), 2**53), st.integers(-75, 8))
pairs = st.tuples(numbers, numbers)
blocks = st.lists(pairs, min_size=1, max_size=12)
precisions = st.sampled_from([1, 2])


def summed(blocks, n_limbs):
    """The exact sum of blocks, through one accumulator."""
    accumulator = GridAccumulator(np.shape(blocks[0]) if blocks else (2,), n_limbs, like=np.empty(0))
    for block in blocks:
        accumulator.add(np.array(block, dtype=np.float64), peak=float(np.max(np.abs(block))))
    return accumulator.total()


def integers(total):
    """The entries as Python integers, in steps of the finest limb."""
    digits = [[int(d) for d in np.ravel(limb)] for limb in total.limbs]
    return [sum(d << (DIGIT_BITS * i) for i, d in enumerate(reversed(column))) for column in zip(*digits, strict=True)]


def oracle(blocks, n_limbs):
    """Each block rounded to the grid, halves to even, and summed without limit."""
    return [sum(round(Fraction(x) / STEP[n_limbs]) for x in column) for column in zip(*blocks, strict=True)]


def same_bytes(a, b):
    return a.top == b.top and [x.tobytes() for x in a.limbs] == [y.tobytes() for y in b.limbs]


@given(blocks, precisions, st.randoms(use_true_random=False))
def test_any_order_and_grouping_gives_equal_bytes_and_the_integer_total(blocks, n_limbs, random):
    whole = summed(blocks, n_limbs)
    shuffled = random.sample(blocks, len(blocks))
    cut = random.randint(0, len(blocks))
    parts = [summed(part, n_limbs) for part in (shuffled[:cut], shuffled[cut:])]
    assert integers(whole) == oracle(blocks, n_limbs)
    assert same_bytes(whole, parts[0] + parts[1])
    assert all(np.all((limb >= -HALF) & (limb < HALF)) for limb in whole.limbs[1:])


@given(blocks, blocks, blocks, precisions, st.integers(-9, 9))
def test_sums_are_a_module_over_the_integers(first, second, third, n_limbs, k):
    a, b, c = (summed(x, n_limbs) for x in (first, second, third))
    zero = summed([], n_limbs)
    assert same_bytes(a + b, b + a)
    assert same_bytes((a + b) + c, a + (b + c))
    assert same_bytes(a + zero, a)
    assert same_bytes((a + b) - b, a)
    assert same_bytes((a + b) * k, a * k + b * k)
    assert integers(a * k) == [k * i for i in integers(a)]


@given(blocks, precisions)
def test_value_is_rounded_once_from_two_limbs_and_within_an_ulp_from_three(blocks, n_limbs):
    total = summed(blocks, n_limbs)
    for value, i in zip(total.value(), integers(total), strict=True):
        exact = float(i * STEP[n_limbs])
        assert abs(value - exact) <= (math.ulp(exact) if len(total.limbs) == 3 else 0.0)


@pytest.mark.parametrize("n_limbs", [1, 2])
@pytest.mark.parametrize("huge", [2.0**36, -(2.0**37), 2.0**55 + 4.0, 1.9 * 2.0**71])
def test_the_coarse_limb_comes_and_goes(n_limbs, huge):
    """Room runs out, a coarser limb is taken; once the huge block is forgotten, so is the limb."""
    small, large = summed([(0.3, -7.25)], n_limbs), summed([(huge, 0.0)], n_limbs)
    both = small + large
    assert both.top == COARSE
    assert len(both.limbs) == n_limbs + 1
    assert same_bytes(both, summed([(0.3, -7.25), (huge, 0.0)], n_limbs))
    assert same_bytes(both - large, small)
    assert small.top == BASE


@pytest.mark.parametrize("steps", [0.5, 1.5, 2.5, -0.5, -1.5, 2.0**35 + 0.5, 2.0**35 + 1.5])
@pytest.mark.parametrize("n_limbs", [1, 2])
@pytest.mark.parametrize("extra_limb", [False, True])
def test_half_steps_round_to_even_whatever_the_number_of_limbs(steps, n_limbs, extra_limb):
    block = steps * float(STEP[n_limbs])
    total = summed([(block, 2.0**40), (0.0, -(2.0**40))] if extra_limb else [(block, 0.0)], n_limbs)
    assert integers(total) == [round(steps), 0]


@pytest.mark.parametrize("carry", [-1.0, 0.0, 1.0])
def test_half_a_digit_is_always_carried_the_same_way(carry):
    """+2^35 and -2^35 with one more carry are one number, so they must get one form."""
    plus = canonical((np.array([carry]), np.array([HALF])), BASE)
    minus = canonical((np.array([carry + 1.0]), np.array([-HALF])), BASE)
    assert same_bytes(plus, minus)
    assert plus.limbs[1] == -HALF


def test_multiplying_by_other_numbers_rounds_to_the_grid():
    total = summed([(3.0, -5.0)], 1)
    assert integers(total * 0.25) == integers(summed([(0.75, -1.25)], 1))
    assert integers(total * 2.0**-18) == [round(3 / 4), round(-5 / 4)]
    assert integers(total * 1e6) == integers(summed([(3e6, -5e6)], 1))
    with pytest.raises(ScaleError):
        total * math.nan


def test_zero_has_one_sign():
    total = summed([(0.0, 1.0)], 2)
    assert same_bytes(total * -1, summed([], 2) - total)


@pytest.mark.parametrize("n_limbs", [1, 2])
def test_scalar_sums_carry_after_many_additions(n_limbs):
    """NumPy's arithmetic makes scalars of arrays without axes; the sum of weights is such an array."""
    accumulator = GridAccumulator((), n_limbs, like=np.empty(0))
    for _ in range(MAX_ADDS + 5):
        accumulator.add(np.array(0.75), peak=0.75)
    accumulator.add(np.array(2.0**50), peak=2.0**50)
    accumulator.add(np.array(0.75), peak=0.75)
    total = accumulator.total()
    assert total.value() == 2.0**50 + 0.75 * (MAX_ADDS + 6)
    assert (total * 0.5).value() == 2.0**49 + 0.375 * (MAX_ADDS + 6)


@pytest.mark.parametrize("n_limbs", [1, 2])
def test_a_refused_block_leaves_no_trace(n_limbs):
    accumulator = GridAccumulator((2,), n_limbs, like=np.empty(0))
    accumulator.add(np.array([1.0, 2.0]), peak=2.0)
    for bad in (2.0**72, math.inf, math.nan):
        with pytest.raises(ScaleError):
            accumulator.add(np.array([bad, 0.0]), peak=bad)
    accumulator.add(np.array([1.0, 2.0]), peak=2.0)
    assert accumulator.total() == summed([(2.0, 4.0)], n_limbs)


@pytest.mark.parametrize("n_limbs", [1, 2])
def test_sums_beyond_the_room_are_refused(n_limbs):
    large = summed([(1.5 * 2.0**71, 0.0)], n_limbs)
    with pytest.raises(ScaleError, match="rescale"):
        large + large
    with pytest.raises(ScaleError):
        large * 2
    assert same_bytes((large - large) + large, large)


def test_a_nan_that_its_peak_hid_is_refused_at_the_end():
    accumulator = GridAccumulator((2,), 1, like=np.empty(0))
    accumulator.add(np.array([math.nan, 1.0]), peak=1.0)
    with pytest.raises(ScaleError):
        accumulator.total()


def test_sums_of_other_shapes_or_grids_do_not_add():
    with pytest.raises(MismatchError, match="shapes"):
        summed([(1.0, 2.0)], 1) + summed([(1.0, 2.0, 3.0)], 1)
    with pytest.raises(MismatchError, match="precision"):
        summed([(1.0, 2.0)], 1) + summed([(1.0, 2.0)], 2)
    assert summed([(1.0, 2.0)], 1) != summed([(1.0, 2.0)], 2)


@pytest.mark.parametrize("n_limbs", [1, 2])
def test_a_part_of_the_array_can_be_added_on_every_device(on, n_limbs):
    rows = np.array([[0.1, 2.0**45], [-3.0, 4.0]])
    accumulator = GridAccumulator((2, 3), n_limbs, like=on(np.empty(0)))
    for row, values in enumerate(rows):
        accumulator.add(on(values) * 1.0, peak=2.0**45, where=(row, slice(1, 3)))
    total = (accumulator.total() * 3).to_host()
    assert isinstance(total, GridSum)
    assert all(isinstance(limb, np.ndarray) for limb in total.limbs)
    assert integers(total) == integers(summed([np.pad(rows, ((0, 0), (1, 0)))], n_limbs) * 3)
