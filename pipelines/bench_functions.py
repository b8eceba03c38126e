"""What computes exp and cos of float32 fastest, on one core and in a block that its cache holds.

    python pipelines/bench_functions.py [--repeats 200]

NumPy, which features use, beside numexpr and numba where they are installed (`pip install numexpr numba`), each into
memory that is there. Given are nanoseconds a number, the best of some runs in turn, and the largest error in units of
float32's last place, against float64.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

SHAPE = (256, 512)
Function = Callable[[np.ndarray, np.ndarray], object]


def ways(name: str) -> dict[str, Function]:
    """Each installed way to write a function of one array into another."""
    inner = getattr(np, name)
    found: dict[str, Function] = {"numpy": lambda x, out: inner(x, out=out)}
    if importlib.util.find_spec("numexpr"):
        numexpr = importlib.import_module("numexpr")
        numexpr.set_num_threads(1)
        found["numexpr"] = lambda x, out: numexpr.evaluate(f"{name}(x)", {"x": x}, out=out)
    if importlib.util.find_spec("numba"):
        numba = importlib.import_module("numba")
        found["numba"] = numba.vectorize(["float32(float32)"], fastmath=True)(lambda x: inner(x))
    return found


def measure(name: str, x: np.ndarray, repeats: int) -> dict[str, tuple[float, float]]:
    """Nanoseconds a number and the error in last places, by library; in turn, so that what else runs meets all."""
    exact, out, there = getattr(np, name)(x.astype(np.float64)), np.empty_like(x), ways(name)
    seconds, errors = dict.fromkeys(there, np.inf), {}
    for _ in range(repeats):
        for library, function in there.items():
            started = time.perf_counter()
            function(x, out)
            seconds[library] = min(seconds[library], time.perf_counter() - started)
            if library not in errors:
                errors[library] = float(np.max(np.abs(out - exact) / np.spacing(np.abs(exact).astype(np.float32))))
    return {library: (1e9 * seconds[library] / x.size, errors[library]) for library in there}


def main(repeats: int, console: Console) -> dict[str, dict[str, tuple[float, float]]]:
    """Measure and print: exponents as of a radial basis function, angles as of random Fourier features."""
    rng = np.random.default_rng(0)
    inputs = {"exp": -rng.exponential(3.0, SHAPE), "cos": rng.normal(0.0, 8.0, SHAPE)}
    found = {name: measure(name, x.astype(np.float32), repeats) for name, x in inputs.items()}
    shown = Table("function", "library", "ns a number", "error in last places")
    for name, libraries in found.items():
        for library, (nanoseconds, error) in libraries.items():
            shown.add_row(name, library, f"{nanoseconds:.2f}", f"{error:.1f}")
    console.print(shown)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=200)
    main(parser.parse_args().repeats, Console())
