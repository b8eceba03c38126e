"""Whether a backend computes what NumPy does, repeats its bits, and how near it comes to its product's speed. Floor 7.

Written for a GPU; the very same checks run with NumPy on both sides, which is how they are tested without one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from threadpoolctl import threadpool_limits

from streamfit.arrays import (
    Array,
    Backend,
    Precision,
    bare_product,
    cholesky_factor,
    cholesky_solve,
    device_array,
    device_facts,
    eigenpairs,
    eigenvalues,
    finish,
    operand,
    r_factor,
    to_device_of,
    to_host,
    transposed_product,
)
from streamfit.centered import unpack_tiles
from streamfit.engine.feed import fed, transport_to
from streamfit.features import RBF, FeatureMap, Linear, RandomFourier
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.moments import Moments, MomentsAccumulator
from streamfit.precision import feature_type, rounded
from streamfit.targets import Dense, OneHot

_D = 96
_FLOAT32 = 2.0**-24 * BLOCK_ROWS**0.5 * 8
"""Relative difference of two float32 sums over a block that add in other orders: eight deviations of a random walk."""


@dataclass(frozen=True)
class Check:
    """One comparison: what was measured, what it may be at most (or, for speeds, nothing), and whether it passed."""

    name: str
    passed: bool
    measured: float
    expected: str


def examine_backend(backend: Backend, sizes: Sequence[int] = (2048, 4096, 8192)) -> dict[str, Any]:
    """All checks and speeds of a backend.

    Parameters
    ----------
    backend : {'numpy', 'cuda'}
    sizes : sequence of int
        Numbers of features that speeds are measured at.

    Returns
    -------
    dict
        `device`, `checks` (each a `Check` as a dict), `throughput`, and `passed`: whether all checks did.

    Raises
    ------
    ConfigError
        If the backend has no device here.
    """
    like = device_array(np.zeros(1), backend)
    facts = device_facts() if backend == "cuda" else {"name": "host"}
    with threadpool_limits(1):
        checks = list(parity(like))
        checks.append(_fed_equal(backend))
        speeds = [speed(like, d, precision) for d in sizes for precision in get_args(Precision)]
        copies = copying(backend, like) if transport_to(backend) else {}  # none where rows lie where they are needed
    return {
        "device": facts,
        "passed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
        "throughput": {"accumulate": speeds, "copies": copies},
    }


def parity(like: Array) -> Iterator[Check]:
    """Compare the library and device of `like` with NumPy."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 8))
    maps: tuple[FeatureMap, ...] = (Linear(8), RBF(x[:_D], 0.1), RandomFourier(_D, 0.1, 0, 8))
    for features in maps:
        for kind in (np.float32, np.float64):
            host = features(x.astype(kind))
            there = to_host(features.like(like)(to_device_of(x.astype(kind), like)))
            bound = 2e-5 if kind is np.float32 else 1e-12
            name = f"features {type(features).__name__} {np.dtype(kind).name}"
            yield _within(name, float(np.abs(host - there).max()), bound)
    n = BLOCK_ROWS + 500
    phi = rng.normal(size=(n, _D))
    y, ids = phi[:, :2] + rng.normal(size=(n, 2)), rng.integers(0, 50, n)
    integers = rng.integers(-9, 10, (n, _D)).astype(np.float32)
    for precision in get_args(Precision):
        rows = phi.astype(feature_type(precision))
        yield _equal(f"rounding {precision}", rounded(rows, precision), rounded(to_device_of(rows, like), precision))
        bound = 1e-12 if precision == "float64" else _FLOAT32
        for name, targets, values in (("dense", Dense(2), y), ("one-hot", OneHot(50), ids)):
            frame = Frame.identity(_D, targets.n_targets)
            ours, theirs = (
                Moments.from_rows(
                    to_device_of(rows, place), to_device_of(values, place), frame, targets, precision=precision
                ).to_host()
                for place in (np.zeros(1), like)
            )
            for part in ("gram", "cross"):
                a, b = getattr(ours, part).value(), getattr(theirs, part).value()
                scale = float(np.abs(a).max())
                yield _within(f"{part} {name} {precision}", float(np.abs(a - b).max()) / scale, bound)
        frame, whole = Frame.identity(_D, 1), integers[:, :1].astype(np.float64)
        exact = integers.astype(np.int64).T @ integers.astype(np.int64)
        found = _moments(integers, whole, frame, precision, like)
        yield _equal(f"integers {precision}", exact.astype(np.float64), unpack_tiles(found.gram.value(), _D))
        # Three times over, and block by block from the last to the first: the same bits.
        again = [_moments(rows, y[:, :1], frame, precision, like) for _ in range(3)]
        blocks = [slice(lo, lo + BLOCK_ROWS) for lo in range(0, n, BLOCK_ROWS)]
        backwards = [_moments(rows[b], y[b, :1], frame, precision, like) for b in reversed(blocks)]
        repeats = again[0] == again[1] == again[2] == sum(backwards[1:], start=backwards[0])
        yield Check(f"bits repeat {precision}", bool(repeats), float(repeats), "equal")
        # Classes and weighted rows are summed in other ways than dense targets.
        heavy = rng.uniform(0.5, 2.0, n)
        for name, targets, values in (("weighted", Dense(2), y), ("weighted one-hot", OneHot(50), ids)):
            frame = Frame.identity(_D, targets.n_targets)
            x, y_there, w = (to_device_of(array, like) for array in (rows, values, heavy))
            runs = [Moments.from_rows(x, y_there, frame, targets, weights=w, precision=precision) for _ in range(3)]
            same = runs[0].to_host() == runs[1].to_host() == runs[2].to_host()
            yield Check(f"bits repeat {name} {precision}", bool(same), float(same), "equal")
    r = r_factor(to_device_of(phi, like))
    yield _within("triangle by QR", float(np.abs(to_host(r) - r_factor(phi)).max()) / n**0.5, 1e-11)
    system, right = phi.T @ phi + np.eye(_D), phi.T @ y
    factor = cholesky_factor(to_device_of(system, like))
    host_factor = cholesky_factor(system)
    error = np.inf
    if factor is not None and host_factor is not None:
        solved = to_host(cholesky_solve(factor, to_device_of(right, like)))
        error = float(np.abs(solved - cholesky_solve(host_factor, right)).max())
    yield _within("Cholesky solve", error, 1e-11)
    values = eigenvalues(system)
    yield _within("eigenvalues", float(np.abs(eigenvalues(to_device_of(system, like)) / values - 1.0).max()), 1e-11)
    pairs = eigenpairs(to_device_of(system, like))
    squared, vectors = (to_host(part) for part in pairs)
    rebuilt = (vectors * squared) @ vectors.T  # signs of vectors are anybody's
    yield _within("eigenvectors", float(np.abs(rebuilt - system).max() / values.max()), 1e-12)
    refused = cholesky_factor(to_device_of(-system, like)) is None
    yield Check("indefinite matrix refused", refused, float(refused), "refused")


def _moments(rows: np.ndarray, y: np.ndarray, frame: Frame, precision: Precision, like: Array) -> Moments:
    there = to_device_of(np.ascontiguousarray(rows), like), to_device_of(np.ascontiguousarray(y), like)
    return Moments.from_rows(*there, frame, Dense(1), precision=precision).to_host()


def _within(name: str, measured: float, bound: float) -> Check:
    return Check(name, bool(measured <= bound), measured, f"at most {bound:.2g}")


def _equal(name: str, host: np.ndarray, there: Array) -> Check:
    found = to_host(there)
    differing = int((host != found).sum())
    return Check(name, differing == 0, float(differing), "0 entries that differ")


def _fed_equal(backend: Backend) -> Check:
    """Blocks that went through the transport, of changing sizes, by rows and by columns, are what they were."""
    rng = np.random.default_rng(1)
    blocks = [rng.normal(size=(int(n), 64)) for n in rng.integers(1, 5000, 12)]
    blocks = [np.asfortranarray(block) if i % 3 == 2 else block for i, block in enumerate(blocks)]
    there = fed(((i, (block, None)) for i, block in enumerate(blocks)), transport_to(backend))
    differing = 0
    for i, arrays in there:
        assert arrays is not None  # each block above has some
        differing += int((to_host(arrays[0] * 1.0) != blocks[i]).sum())
    return Check("double-buffered copies", differing == 0, float(differing), "0 entries that differ")


def speed(like: Array, n_features: int, precision: Precision) -> dict[str, Any]:
    """GFLOP/s of accumulating a Gram matrix, and of one product of the same rows, counted as a triangle each.

    `peak` is one bare syrk (float32, float64) or, where there is none, half of the flops that a whole GEMM reaches;
    `product` the same with what is made of its result, and `reached` with rounding, sums, and checks.
    """
    rows = np.random.default_rng(0).normal(size=(BLOCK_ROWS, n_features)).astype(feature_type(precision))
    phi, y = to_device_of(rows, like), to_device_of(np.zeros((BLOCK_ROWS, 1)), like)
    z = operand(rounded(phi, precision), precision)
    sums = MomentsAccumulator(Frame.identity(n_features, 1), Dense(1), precision, like=like)
    bare = _seconds(bare_product(z, precision), like)
    product = _seconds(lambda: transposed_product(z, [z], precision), like)
    added = _seconds(lambda: sums.add(phi, y), like)
    flops = BLOCK_ROWS * n_features * (n_features + 1) / 1e9
    return {
        "n_features": n_features,
        "precision": precision,
        "peak_gflops": flops / bare,
        "product_gflops": flops / product,
        "reached_gflops": flops / added,
        "fraction_of_peak": bare / added,
    }


def copying(backend: Backend, like: Array) -> dict[str, Any]:
    """GB/s of host-to-device copies, and seconds of a few blocks copied and multiplied in turn and at once."""
    d, n_blocks = 2048, 8
    host = [np.random.default_rng(i).normal(size=(BLOCK_ROWS, d)).astype(np.float32) for i in range(2)]
    y = to_device_of(np.zeros((BLOCK_ROWS, 1)), like)
    pageable = _seconds(lambda: device_array(host[0], backend), like)
    found: dict[str, Any] = {"pageable_gb_per_s": host[0].nbytes / pageable / 1e9}
    transport = transport_to(backend)
    assert transport is not None  # the caller asked for a device
    transport.stage(0, [host[0]])
    seconds = _seconds(lambda: transport.copy(0), like)
    found["pinned_gb_per_s"] = host[0].nbytes / seconds / 1e9
    for name, way in (("in_turn", None), ("double_buffered", transport_to(backend))):
        sums = MomentsAccumulator(Frame.identity(d, 1), Dense(1), "float32", like=like)

        def work(way: Any = way, sums: MomentsAccumulator = sums) -> None:
            for _, arrays in fed(((i, (host[i % 2],)) for i in range(n_blocks)), way):
                assert arrays is not None  # each block above has some
                sums.add(arrays[0] if way is not None else device_array(arrays[0], backend), y)

        found[f"{name}_seconds"] = _seconds(work, like, 2)
    return found


def _seconds(work: Callable[[], Any], like: Array, repeats: int = 4) -> float:
    """The shortest of some runs, each waited for; the first does not count."""
    found = []
    for _ in range(repeats):
        finish(like)
        started = time.perf_counter()
        work()
        finish(like)
        found.append(time.perf_counter() - started)
    return min(found[1:])
