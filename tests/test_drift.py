"""Drift and R² from sums are those of rows; the pipelines on real data run on small data of the same form."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from test_cli import streamfit

from pipelines import embeddings_probe, flights_decay, movies_ease, source_influence
from streamfit import Corpus, accumulate, add, solve
from streamfit.corpus import Labels
from streamfit.drift import drift, r2_of
from streamfit.errors import MismatchError

RNG = np.random.default_rng(9)
MONTHS = ("2026-01", "2026-02", "2026-03")


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Without waiting for the disk; no test here pulls the plug."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def rows_of(month):
    """In March a feature moves, and so does what it says of the target."""
    x = RNG.normal(size=(400, 3)) + (np.array([0, 4.0, 0]) if month == "2026-03" else 0)
    return x, x @ [1.0, -1.0 if month == "2026-03" else 1.0, 0.0] + 0.1 * RNG.normal(size=400)


def test_each_period_against_all_before_it(tmp_path):
    """As scikit-learn has it from the rows themselves."""
    rows = {month: rows_of(month) for month in MONTHS}

    def corpus(month):
        x, y = rows[month]
        columns = {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y}
        return Corpus(columns, ["a", "b", "c"], ["y"], label=month, labels=Labels(fixed=(("time", month),)))

    store = accumulate(corpus(MONTHS[0]), tmp_path / "store", precision="float64")
    with pytest.raises(MismatchError, match=r"1 value\(s\) of the label 'time'"):
        drift(store)
    for month in MONTHS[1:]:
        add(store, corpus(month))
    found = drift(store)
    assert [each.period for each in found] == ["2026-02", "2026-03"]
    last = found[-1]
    x, y = (np.concatenate([rows[m][i] for m in MONTHS[:2]]) for i in range(2))
    oracle = Ridge(1.0).fit(x, y)
    now_x, now_y = rows[MONTHS[2]]
    assert last.r2_before == pytest.approx(r2_score(y, oracle.predict(x)), rel=1e-9)
    assert last.r2 == pytest.approx(r2_score(now_y, oracle.predict(now_x)), rel=1e-9)
    both = Ridge(1.0).fit(np.concatenate([x, now_x]), np.concatenate([y, now_y]))
    assert last.r2_refit == pytest.approx(r2_score(now_y, both.predict(now_x)), rel=1e-9)
    assert last.bias[0] == pytest.approx((now_y - oracle.predict(now_x)).mean())
    assert last.feature == "b"
    assert last.shift == pytest.approx(abs(now_x[:, 1].mean() - x[:, 1].mean()) / x[:, 1].std(), rel=1e-9)
    assert last.lost > 1 > found[0].lost
    assert drift(store, last=1) == [last]
    assert r2_of(solve(store, 1.0), store.moments().centered()) > 0
    shown = streamfit("drift", store.url, "--json")
    assert json.loads(shown.stdout)[-1]["r2"] == last.r2
    assert "sd of b" in streamfit("drift", store.url).stdout


def test_flights_lose_weight_with_age(tmp_path):
    """Delays whose cause has changed are told better by a short half-life; later flights are not counted."""
    n = 4000
    when = np.datetime64("2001-01-01") + np.sort(RNG.integers(0, 180 * 86400, n)).astype("timedelta64[s]")
    late = (when - np.datetime64("2001-01-01")) / np.timedelta64(180, "D")
    distance = RNG.integers(1, 20, n)
    columns = {
        "date": when.astype("datetime64[us]"),
        "delay": (distance * (1 - 2 * late) + RNG.normal(size=n)).round(2),
        "distance": distance,
        "origin": RNG.choice(["ORD", "ATL"], n),
        "destination": RNG.choice(["LAX", "JFK"], n),
    }
    pq.write_table(pa.table(columns), tmp_path / "flights-3m.parquet", row_group_size=250)
    text = flights_decay.CONFIG.read_text().replace("data/", f"{tmp_path}/").replace("runs/", f"{tmp_path}/runs/")
    (tmp_path / "c.toml").write_text(text)
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    found = flights_decay.main(tmp_path / "c.toml", half_life=["10d"], machine=tmp_path / "serial.toml")
    assert found["10d"][0] > found["none"][0] + 0.1
    assert (tmp_path / "runs" / "flights_delay" / "model" / "model.json").is_file()
    # The sums are there: what each month is worth is asked without counting again.
    worth = source_influence.main(tmp_path / "c.toml", machine=tmp_path / "serial.toml")
    assert [each.source for each in worth.influence] == [f"2001-0{month}" for month in range(1, 6)]
    whole = sum(each.n_rows for each in worth.influence)
    assert 0 < whole < (when < np.datetime64("2001-06-01")).sum()


def test_films_are_recommended_by_what_goes_with_them(tmp_path, capsys):
    """Two kinds of people, who like films of their kind alone."""
    kind, n_people, n_films = RNG.integers(0, 2, 300), 300, 60
    likes = (RNG.random((n_people, n_films)) < 0.5) & (np.arange(n_films) % 2 == kind[:, None])
    user, film = np.nonzero(likes)
    columns = {"userId": user, "movieId": film, "rating": np.full(len(user), 4.0), "timestamp": user}
    pq.write_table(pa.table({**columns, "title": [f"film {j}" for j in film]}), tmp_path / "m.parquet")
    fitted = movies_ease.main(tmp_path / "m.parquet", alpha=10.0, at=tmp_path / "run")
    same = np.add.outer(np.arange(n_films), np.arange(n_films)) % 2 == 0
    assert fitted.weights[same].mean() > 0.01
    assert np.abs(fitted.weights[~same]).max() < 1e-12  # nobody liked both
    assert "EASE, alpha 10" in capsys.readouterr().out


@pytest.mark.slow
def test_embeddings_are_read_out(tmp_path, monkeypatch):
    """Pictures of bars at two places are told apart by what an encoder made of them without labels."""
    monkeypatch.setattr(embeddings_probe, "_GROUP_ROWS", 100)
    pictures = {}
    for part, n in (("train", 1200), ("test", 200)):
        labels = RNG.integers(0, 2, n)
        images = RNG.integers(0, 60, (n, 28, 28)).astype(np.uint8)
        images[labels == 0, 3:8] += 150
        images[labels == 1, 18:23] += 150
        pictures |= {f"{part}_images": images, f"{part}_labels": labels}
    embeddings_probe.write_embeddings(tmp_path / "embeddings", pictures)
    text = embeddings_probe.CONFIG.read_text().replace("data/", f"{tmp_path}/").replace("runs/", f"{tmp_path}/runs/")
    (tmp_path / "c.toml").write_text(text.replace("n_classes = 10", "n_classes = 2").replace("folds = 5", "folds = 2"))
    (tmp_path / "serial.toml").write_text('kind = "serial"')
    score = embeddings_probe.main(tmp_path / "c.toml", machine=tmp_path / "serial.toml")
    assert dataclasses.asdict(score)["n_rows"] == 200
    assert score.accuracy > 0.99
