"""Reports stand by themselves, and their numbers are those of the rows and of other people's programs."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cli_runs import GROUPS, ROWS, X, begin, ok, told
from PIL import Image
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from streamfit.corpus import Files
from streamfit.errors import ConfigError
from streamfit.report import Drawing, Report, plot_times
from streamfit.report.held_out import expected_error, reliability
from streamfit.store import Store


class Page(HTMLParser):
    """What a browser would load from a page, and what its links point to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.styles: list[str] = []
        self.tags: list[str] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._in_style = tag == "style"
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href", "src", "srcset", "data", "action"):
                (self.links if (value or "").startswith("#") else self.loads).add(value or "")
            for target in re.findall(r"url\(([^)]*)\)", value or ""):
                (self.links if target.startswith("#") else self.loads).add(target)

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False


def stands_alone(text: str) -> Page:
    """Check a page; returns it."""
    page = Page(text)
    assert page.loads == set()
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\(", "".join(page.styles))
    assert "http" not in text
    assert len(page.ids) == len(set(page.ids))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    return page


# Pages and figures.


def drawing() -> Drawing:
    return plot_times({"counting": 3.0, "solve <b>": 1.0})


def test_figures_of_a_page_share_nothing(tmp_path: Path):
    report = Report("Two & <figures>")
    report.heading("One")
    report.figure("first", drawing(), 'the "first"')
    report.heading("One")
    report.figure("second", drawing(), "the second")
    page = stands_alone(report.page())
    assert page.tags.count("svg") == 2
    assert any(i.startswith("first-") for i in page.ids)
    assert {"figure-first", "figure-second", "one", "one-more"} <= set(page.ids)
    assert "solve &lt;b&gt;" in report.page()
    assert "var(--muted)" in report.page().split("</style>")[1], "its colours are the page's"
    with pytest.raises(ConfigError, match="figure named 'first'"):
        report.figure("first", drawing(), "again")
    report.write(tmp_path)
    for name in ("first", "second"):
        assert {p.name for p in (tmp_path / "figures").glob(f"{name}.*")} == {
            f"{name}.{s}" for s in ("png", "svg", "csv")
        }
    rows = list(csv.DictReader((tmp_path / "figures" / "first.csv").read_text().splitlines()))
    assert rows == [{"what": "counting", "seconds": "3.0"}, {"what": "solve <b>", "seconds": "1.0"}]
    assert Image.open(tmp_path / "figures" / "first.png").getpixel((2, 2))[:3] == (255, 255, 255)
    with pytest.raises(ConfigError, match="cannot write the figure"):
        drawing().save(tmp_path / "none" / "figure.png")
    with pytest.raises(ConfigError, match="cannot write"):
        report.write_page(tmp_path / "figures" / "first.csv" / "page.html")


def test_reliability_of_known_probabilities():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=40_000)
    honest = reliability(p, rng.uniform(size=len(p)) < p)
    assert expected_error(honest) < 0.015
    assert sum(each["rows"] for each in honest) == len(p)
    assert expected_error(reliability(p, np.zeros(len(p), bool))) == pytest.approx(0.5, abs=0.01)


# The report of a run.


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = begin(tmp_path_factory.mktemp("report"))
    text = (folder / "ridge.toml").read_text().replace("alphas = [1]", "alphas = [0.1, 1, 1000]")
    (folder / "grid.toml").write_text(text)
    ok("fit", folder / "grid.toml", "--machine", folder / "serial.toml")
    serial = ("--machine", folder / "serial.toml")
    ok("forget", folder / "run", "--shard", "code-2026-02.parquet#3", "--why", "wrong", *serial)
    said = ok("report", folder / "run", "-o", folder / "out.html", "--figures", folder / "figures",
              "--data", folder / "out.json", "--alpha", 0.1, "--alpha", 1, "--alpha", 1000, *serial)  # fmt: skip
    assert f"report: {folder / 'out.html'}" in said
    return folder


@pytest.fixture(scope="module")
def shown(begun: Path) -> dict:
    return json.loads((begun / "out.json").read_text())


def fold_rows(begun: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Rows of each fold as they are counted, by their own files."""
    found: dict[int, list[pa.Table]] = {}
    for shard in sorted(Store(begun / "run" / "store").counted().values(), key=lambda s: s.content_id):
        group = pq.ParquetFile(shard.uri).read_row_group(shard.start)
        found.setdefault(shard.fold(3), []).append(group)
    tables = {fold: pa.concat_tables(parts) for fold, parts in found.items()}
    return {f: (np.column_stack([t[c] for c in X]), t["y"].to_numpy()) for f, t in tables.items()}


def test_the_page_stands_alone_and_has_every_section(begun: Path):
    page = stands_alone((begun / "out.html").read_text())
    sections = ["data", "plan-and-actual", "how-alpha-was-chosen", "certificate", "learning-curve"]
    sections += ["what-features-contribute", "residuals-and-calibration", "segments-over-time"]
    assert set(sections) <= set(page.ids)
    figures = {i.removeprefix("figure-") for i in page.ids if i.startswith("figure-")}
    expected = {"alpha", "learning", "features", "residuals", "deviates", "calibration", "segments", "growth", "times"}
    assert figures == expected == {path.stem for path in (begun / "figures").glob("*.csv")}
    styles = "".join(page.styles)
    assert "prefers-color-scheme: dark" in styles
    assert "@media print" in styles


def test_what_was_read_and_what_left(begun: Path, shown):
    each = 2 * GROUPS * ROWS
    assert shown["data"]["n_rows"] == 2 * each - ROWS
    assert {s["source"]: s["rows"] for s in shown["sources"]} == {"code": each - ROWS, "web": each}
    assert shown["data"]["removed_rows"] == ROWS
    assert shown["passes"][0]["planned_rows"] == shown["passes"][0]["rows"] == 4 * GROUPS * ROWS
    plan = {row["quantity"]: row for row in shown["plan"]}
    assert plan["rows"]["planned"] == plan["rows"]["actual"]
    assert plan["seconds"]["actual"] > 0
    memory = plan["MB of a worker, at its peak"]
    assert memory["actual"] > 0
    assert memory["planned"] > 300, "the process itself, and more"


def test_the_map_of_segments_follows_the_log(begun: Path, shown):
    spans, head = shown["segments"], Store(begun / "run" / "store").head()
    assert len(spans) == 16, "a segment a row group"
    assert {s["segment"] for s in spans if s["until"] is None} == {s.id[:12] for s in head.segments}
    gone = [s for s in spans if s["until"] is not None]
    assert [(s["until"], s["rows"], s["source"], s["time"]) for s in gone] == [(17, ROWS, "code", "2026-02")]
    growth = list(csv.DictReader((begun / "figures" / "growth.csv").read_text().splitlines()))
    last = {row["source"]: int(row["rows"]) for row in growth if row["commit"] == "17"}
    assert sum(last.values()) == head.n_rows
    times = list(csv.DictReader((begun / "figures" / "times.csv").read_text().splitlines()))
    assert sum(int(row["rows"]) for row in times) == head.n_rows


def test_the_learning_curve_ends_where_refits_on_the_rows_do(begun: Path, shown):
    folds = fold_rows(begun)
    ends = {point["fold"]: point for point in shown["learning_curve"]}  # the last of each fold
    assert ends.keys() == folds.keys()
    for fold, (x, y) in folds.items():
        others = [rows for f, rows in folds.items() if f != fold]
        train_x, train_y = (np.concatenate(parts) for parts in zip(*others, strict=True))
        model = Ridge(alpha=shown["alpha"], solver="cholesky").fit(train_x, train_y)
        error = np.sum((y - model.predict(x)) ** 2)
        about_training_mean = 1 - error / np.sum((y - train_y.mean()) ** 2)
        assert ends[fold]["rows"] == len(train_y)
        assert ends[fold]["r2"] == pytest.approx(about_training_mean, abs=1e-9)
        assert ends[fold]["mse"] == pytest.approx(error / len(y), rel=1e-9)


def test_parts_of_features_add_up_to_r2(begun: Path, shown):
    x, y = (np.concatenate(parts) for parts in zip(*fold_rows(begun).values(), strict=True))
    model = Ridge(alpha=shown["alpha"], solver="cholesky").fit(x, y)
    assert {row["block"] for row in shown["feature_shares"]} == set(X)
    assert sum(row["r2"] for row in shown["feature_shares"]) == pytest.approx(r2_score(y, model.predict(x)), abs=1e-9)


def test_residuals_are_of_rows_that_the_fit_has_not_seen(begun: Path, shown):
    folds = fold_rows(begun)
    fold = min(folds)
    x, y = folds[fold]
    others = [rows for f, rows in folds.items() if f != fold]
    model = Ridge(alpha=shown["alpha"]).fit(*(np.concatenate(parts) for parts in zip(*others, strict=True)))
    residuals = y - model.predict(x)
    bins = shown["residuals"]
    assert sum(each["rows"] for each in bins) == len(y)
    weighted = sum(each["rows"] * each["predicted"] for each in bins) / len(y)
    assert weighted == pytest.approx(model.predict(x).mean(), rel=1e-9)
    order = np.argsort(model.predict(x), kind="stable")
    first = residuals[order[: bins[0]["rows"]]]
    assert bins[0]["median"] == pytest.approx(np.median(first), rel=1e-6, abs=1e-9)
    assert [row["nominal"] for row in shown["coverage"]] == sorted(row["nominal"] for row in shown["coverage"])
    page = (begun / "out.html").read_text()
    assert f"R² {1 - np.mean(residuals**2) / np.var(y):.6f}" in page


def test_a_store_by_itself_and_nothing_read(begun: Path, tmp_path):
    shutil.copytree(begun / "run" / "store", tmp_path / "store")
    serial = ("--machine", begun / "serial.toml")
    out = ok(
        "report", tmp_path / "store", "-o", tmp_path / "page.html", "--alpha", 2, "--rows", 0, "--data", "-", *serial
    )
    facts = json.loads(out)
    assert (facts["alpha"], "residuals" in facts, "plan" in facts) == (2.0, False, False)
    stands_alone((tmp_path / "page.html").read_text())
    assert "nothing" in told("report", tmp_path / "nothing", "-o", tmp_path / "page.html", *serial)


def test_classes_and_sparse_sums_have_reports(tmp_path):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1200, 2))
    words = np.array(["red", "green", "blue"])[rng.integers(0, 3, 1200)]
    table = {"a": x[:, 0], "b": x[:, 1], "word": words, "y": (x[:, 0] + (words == "red") > 0.3).astype(int)}
    for i in range(8):
        part = slice(150 * i, 150 * (i + 1))
        pq.write_table(pa.table({k: v[part] for k, v in table.items()}), tmp_path / f"{i}.parquet")
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    serial = ("--machine", tmp_path / "serial.toml")
    ridge = 'kind = "ridge"\nrun = "{run}"\n[corpus]\nroot = "{root}"\nfeatures = {features}\ntarget = ["y"]\n{more}'
    for name, features, more in (
        ("classes", '["a", "b"]', 'n_classes = 2\n[[features]]\nkind = "linear"\n[[features]]\nkind = "rbf"\nn = 20\n'),
        ("hashed", '["a", "b", "word"]', '[[features]]\nkind = "hashed"\nn = 1024\n'),
    ):
        run = tmp_path / name
        config = ridge.format(run=run, root=f"{tmp_path}/*.parquet", features=features, more=more)
        (tmp_path / f"{name}.toml").write_text(config + "[solve]\nalphas = [0.1, 1]\nfolds = 2\n")
        ok("fit", tmp_path / f"{name}.toml", *serial)
        facts = json.loads(ok("report", run, "-o", tmp_path / "page.html", "--data", "-", *serial))
        stands_alone((tmp_path / "page.html").read_text())
        assert facts["learning_curve"][-1]["r2"] > 0.2
        shares = {row["block"]: row["r2"] for row in facts["feature_shares"]}
        if name == "classes":
            assert shares.keys() == {"linear", "rbf"}
            assert sum(each["rows"] for each in facts["reliability"]) > 100
        else:
            assert sum(shares.values()) > 0.2


def test_a_language_models_report_has_scores_samples_and_calibration(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "sum", "solve", "once", "at", "the", "end", "<b>"]
    for i in range(40):
        (docs / f"{i}.txt").write_text(" ".join(rng.choice(words, size=120)) + f" document {i}\n")
    (tmp_path / "lm.toml").write_text(
        f'kind = "language_model"\nrun = "{tmp_path / "run"}"\n[corpus]\nroot = "{docs}"\n'
        "[features]\nvocab_size = 300\nn_context = 3\nembedding_dims = 32\nn_centers = 20\n"
        "[solve]\nalphas = [1, 10]\nfolds = 2\n"
    )
    (tmp_path / "serial.toml").write_text('kind = "serial"\n')
    serial = ("--machine", tmp_path / "serial.toml")
    told = json.loads(ok("fit", tmp_path / "lm.toml", *serial, "--json"))["held_out"]
    page = ("-o", tmp_path / "page.html", "--data", "-", *serial)
    facts = json.loads(ok("report", tmp_path / "run", *page, "--prompt", "sum ", "--prompt", "the "))
    shown = stands_alone((tmp_path / "page.html").read_text())
    assert {"how-well-it-predicts", "what-it-writes", "calibration", "why-a-token-is-predicted"} <= set(shown.ids)
    scores = {row["model"]: row for row in facts["models"]}
    evaluated = json.loads(ok("evaluate", tmp_path / "run" / "model", *sorted(held_out_files(docs)), "--json"))
    for name, score in evaluated.items():
        assert scores[name]["perplexity"] == pytest.approx(score["perplexity"], rel=1e-9)
    assert told["perplexity"] == pytest.approx(facts["models"][-1]["perplexity"], rel=1e-6), "of all: there are few"
    assert facts["samples"].keys() == {"sum ", "the "}
    assert {row["block"] for row in facts["feature_shares"]} == {"linear", "rbf"}, "of maps behind an embedding"
    for found in facts["explanations"]:
        assert sum(share["share"] for share in found["shares"]) == pytest.approx(found["probability"], rel=1e-6)
    assert sum(each["rows"] for each in facts["reliability"]) == scores["uniform"]["tokens"]
    # The most probable token's share of hits, by bins and by the table.
    hits = sum(each["rows"] * each["accuracy"] for each in facts["reliability"]) / scores["uniform"]["tokens"]
    assert hits == pytest.approx(facts["models"][-1]["top1"], abs=0.02)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "A distribution over 300 tokens" in card
    assert facts["data"]["ledger"] in card


def held_out_files(docs: Path) -> list[Path]:
    return [path for _, path in Files(docs, split="test", fractions=(0.8, 0.1, 0.1)).find()]


# In a real browser, where there is one.


def browser() -> str | None:
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    return os.environ.get("STREAMFIT_BROWSER") or next(filter(None, map(shutil.which, names)), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium here; STREAMFIT_BROWSER names one")
@pytest.mark.slow
def test_a_browser_shows_it_light_dark_and_on_paper(begun: Path, tmp_path):
    page = (begun / "out.html").as_uri()

    def run(*options: str, address: str = page) -> str:
        always = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [str(browser()), *always, *options, address]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout

    shots = {}
    for name, scheme in (("light", "1"), ("dark", "0")):
        setting = f"--blink-settings=preferredColorScheme={scheme}"
        run(setting, f"--screenshot={tmp_path / name}.png", "--window-size=900,6000")
        shots[name] = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), float)
    assert shots["light"][5, 5] > 240
    assert shots["dark"][5, 5] < 40
    # Text and figures are there in both: as many rows of pixels have something to see.
    seen = {name: np.sum(np.ptp(shot, axis=1) > 60) for name, shot in shots.items()}
    assert seen["light"] > 2000
    assert abs(seen["light"] - seen["dark"]) < 0.1 * seen["light"]
    run(f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())) >= 2
    # What a page asks the network for is in the browser's log: of one with an image somewhere else, of ours nothing.
    (tmp_path / "other.html").write_text("<img src='http://localhost:9/x.png'>")
    for address, asked in ((page, set()), ((tmp_path / "other.html").as_uri(), {"http://localhost:9/x.png"})):
        log = tmp_path / "net.json"
        run("--dump-dom", f"--log-net-log={log}", "--disable-background-networking", address=address)
        assert set(re.findall(r'"url":"(https?://[^"]*)"', log.read_text())) == asked
    assert run("--dump-dom").count("<svg") == 9
