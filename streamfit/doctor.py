"""Looking at the machine: BLAS, speed of its products, and whether sums repeat on it. Floor 7."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from streamfit.arrays import Precision
from streamfit.engine.machine import cores
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.moments import Moments
from streamfit.store.place import sync
from streamfit.targets import Dense

_D = 1024


def examine() -> dict[str, Any]:
    """Facts about this machine, in a few seconds.

    Returns
    -------
    dict
        `gram_share_of_peak_*` is what accumulating a Gram matrix of 1,024 features reaches of the matrix product
        alone, on one core.
    """
    blas = [f"{info['internal_api']} {info['version']}" for info in threadpool_info() if info["user_api"] == "blas"]
    facts: dict[str, Any] = {
        "cores": cores(),
        "blas": ", ".join(sorted(set(blas))) or "unknown",
        "cupy": "installed (not run on hardware by this release)" if importlib.util.find_spec("cupy") else "none",
        "dashboard": importlib.util.find_spec("bokeh") is not None,
    }
    for precision in ("float32", "float64"):
        peak, reached = _speed(precision)
        facts[f"product_gflop_per_core_{precision}"] = round(peak, 1)
        facts[f"gram_share_of_peak_{precision}"] = round(reached / peak, 2)
    facts["sums_repeat"] = _repeats()
    facts["fsync_ms"] = round(_fsync_seconds() * 1e3, 2)
    return facts


def _speed(precision: Precision) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(2 * BLOCK_ROWS, _D)).astype(precision)
    y = phi[:, :1].astype(np.float64)
    flops = len(phi) * _D * (_D + 1)
    frame = Frame.identity(_D, 1)
    with threadpool_limits(1):
        peak = min(_timed(lambda: phi.T @ phi) for _ in range(3))
        reached = min(_timed(lambda: Moments.from_rows(phi, y, frame, Dense(1), precision=precision)) for _ in range(3))
    return flops / peak / 1e9, flops / reached / 1e9


def _timed(work: Any) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _repeats() -> bool:
    """Whether the same rows give the same bits, in one order and in another."""
    rng = np.random.default_rng(1)
    frame, y = Frame.identity(64, 1), rng.normal(size=(3 * BLOCK_ROWS, 1))
    phi = rng.normal(size=(3 * BLOCK_ROWS, 64)).astype(np.float32)
    with threadpool_limits(1):
        parts = [
            Moments.from_rows(phi[lo : lo + BLOCK_ROWS], y[lo : lo + BLOCK_ROWS], frame, Dense(1), precision="float32")
            for lo in range(0, len(phi), BLOCK_ROWS)
        ]
        whole = Moments.from_rows(phi, y, frame, Dense(1), precision="float32")
    return parts[2] + parts[0] + parts[1] == whole


def _fsync_seconds() -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe"
        path.write_bytes(b"x" * 4096)
        return min(_timed(lambda: sync(path)) for _ in range(5))
