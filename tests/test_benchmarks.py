"""The benchmarks of one process run whole on tiny sizes: their speeds mean nothing here, what they compare does."""

import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from pipelines import bench_counted, bench_functions, bench_gram
from pipelines.bench_gram import Case
from streamfit.errors import ConfigError

N_CLASSES = 50


@pytest.fixture
def quick(monkeypatch):
    """Fewer classes than a language model has, and files that need not grow old."""
    whole = bench_gram.classes
    monkeypatch.setattr(bench_gram, "classes", lambda n_features: whole(16, N_CLASSES))
    monkeypatch.setattr(bench_gram, "time", SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda seconds: None))


def test_the_share_of_blas_is_measured_for_every_case_and_precision(quick, tmp_path):
    console = Console(record=True, width=200)
    found, crossed = bench_gram.main([Case.of(f"{kind}:70") for kind in ("linear", "rbf", "fourier")], 0.03, 1, console)
    kinds = ("linear", "rbf", "fourier")
    expected = [(f"{kind} 70", p) for kind in kinds for p in ("float32", "float64")]
    assert [(m.case, m.precision) for m in found] == expected
    for m in found:
        assert m.n_rows == 8192
        assert m.gflop == pytest.approx(8192 * 70 * 71 / 1e9)
        assert m.reading == pytest.approx(m.seconds["list and hash"] + m.seconds["decode"] / bench_gram.cores())
        assert m.bound == pytest.approx(1.0 / (1.0 + m.reading / m.seconds["BLAS alone"]))
        assert all(s > 0 for stage, s in m.seconds.items() if stage != "features")
        assert (m.seconds["features"] > 0) == ("linear" not in m.case)
        assert m.read_gb > 8192 * 4 * (70 if "linear" in m.case else bench_gram.N_INPUTS) / 1e9
    assert crossed["classes"] == N_CLASSES
    assert all(crossed[speed] > 0 for speed in ("GB/s", "copy GB/s", "ms a block"))
    text = bench_gram.markdown(found)
    assert text.count("\n") == 2 + len(found)
    assert all(f"{m.share:.0%}" in text for m in found)
    bench_gram.roofline(found, tmp_path / "roofline.svg")
    assert "rbf 70, float64" in (tmp_path / "roofline.svg").read_text("utf-8")
    assert f"cross-moments of {N_CLASSES} classes, 16 features" in console.export_text()


def test_a_case_that_is_none_is_refused():
    for text in ("linear", "linear:0", "cubic:3", "rbf:x"):
        with pytest.raises(ConfigError, match="case"):
            Case.of(text)


def test_counting_rows_once_is_shown_with_the_same_sums(tmp_path):
    """Short contexts of a few words repeat themselves, long ones do not; the integers' sums are equal."""
    words = np.random.default_rng(0).integers(0, 12, 12_000)
    for i in range(3):
        text = " ".join("abcdefghijkl"[w] * 3 for w in words[4000 * i : 4000 * (i + 1)])
        (tmp_path / f"{i}.py").write_text(text, "utf-8")
    lines = list(bench_counted.report(str(tmp_path), [1, 8], 2**14, 6000, 300))
    assert len(lines) == 3
    short, long = (float(re.search(r"([\d.]+)% distinct", line)[1]) for line in lines[1:])
    assert short < 1
    assert long > 99
    assert "decision: row by row" in lines[2]
    assert all("all sums are equal (==)" in line for line in lines[1:])


def test_functions_are_timed_and_right_to_a_few_last_places():
    found = bench_functions.main(2, Console(quiet=True))
    assert set(found) == {"exp", "cos"}
    assert all(ns > 0 and error < 4 for libraries in found.values() for ns, error in libraries.values())
