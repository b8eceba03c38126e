"""A recommender from one inverse: EASE on MovieLens, compared with the most popular films.

    python pipelines/movies_ease.py [--data data/movies.parquet] [--alpha 200] [--at runs/movies]

People are rows and films are columns of a sparse matrix; sums are exact whatever the order of people, so one who asks
to be forgotten is one row less, to the last bit. A tenth of the people is held out: half of their films are shown, and
the other half is to be found again (recall and NDCG at 20). Without the data it is fetched first (apt-get, 5 MB).
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.fetch import movies
from streamfit import Corpus, accumulate
from streamfit.cli import script
from streamfit.moments import Moments
from streamfit.solve.ease import EASE, ease

LIKED, LEAST, TOP = 3.5, 20, 20
"""Stars from which a film was liked, people who must have liked it, and films that are recommended."""


def main(data: Path = Path("data/movies.parquet"), alpha: float = 200.0, at: Path = Path("runs/movies")) -> EASE:
    """Fit, score and show; returns the weights between films."""
    console = Console()
    if not data.exists():
        movies(data.parent)
    likes, titles = matrix(data)
    held_out = np.random.default_rng(0).random(likes.shape[0]) < 0.1
    shutil.rmtree(at / "store", ignore_errors=True)
    corpus = Corpus({"films": likes[~held_out], "none": np.zeros((~held_out).sum())}, ["films"], ["none"])
    store = accumulate(corpus, at / "store", precision="float64")
    sums = store.moments()
    assert isinstance(sums, Moments)
    fitted = ease(sums, alpha)
    np.savez(at / "weights.npz", weights=fitted.weights, titles=np.asarray(titles))

    shown, hidden = halves(likes[held_out])
    popular = np.tile(np.asarray(likes[~held_out].sum(axis=0)).ravel(), (shown.shape[0], 1))
    popular[shown > 0] = -np.inf
    table = Table(title=f"{shown.shape[0]} people held out of {likes.shape[0]}, {likes.shape[1]:,} films")
    for column in ("", f"recall at {TOP}", f"NDCG at {TOP}"):
        table.add_column(column, justify="right")
    for name, ranked in (
        ("most popular", np.argsort(-popular, axis=1, kind="stable")[:, :TOP]),
        (f"EASE, alpha {alpha:g}", fitted.recommend(shown, TOP)),
    ):
        recall, ndcg = scored(ranked, hidden)
        table.add_row(name, f"{recall:.3f}", f"{ndcg:.3f}")
    console.print(table)
    near = Table(title="films that speak most for another")
    for column in ("who liked", "is recommended"):
        near.add_column(column)
    for film in np.argsort(-np.asarray(likes.sum(axis=0)).ravel(), kind="stable")[:5]:
        best = np.argsort(-fitted.weights[film], kind="stable")[:3]
        near.add_row(titles[film], ", ".join(titles[j] for j in best))
    console.print(near)
    return fitted


def matrix(data: Path) -> tuple[scipy.sparse.csr_array, list[str]]:
    """Who liked which film, of films that several did, and of people who liked several of them."""
    table = pq.read_table(data).to_pandas()
    liked = table[table["rating"] >= LIKED]
    liked = liked[liked.groupby("movieId")["userId"].transform("size") >= LEAST]
    liked = liked[liked.groupby("userId")["movieId"].transform("size") >= 5]
    people, row = np.unique(liked["userId"], return_inverse=True)
    films, column = np.unique(liked["movieId"], return_inverse=True)
    titles = dict(zip(liked["movieId"], liked["title"], strict=True))
    ones = np.ones(len(liked), np.float32)
    found = scipy.sparse.csr_array((ones, (row, column)), shape=(len(people), len(films)))
    return found, [titles[film] for film in films]


def halves(likes: scipy.sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Each person's films at random in two halves: what is shown, and what is to be found."""
    rng, dense = np.random.default_rng(1), likes.toarray()
    hidden = np.zeros_like(dense)
    for row, there in zip(hidden, dense, strict=True):
        films = rng.permutation(np.flatnonzero(there))
        row[films[: len(films) // 2]] = 1.0
    return dense - hidden, hidden


def scored(ranked: np.ndarray, hidden: np.ndarray) -> tuple[float, float]:
    """Mean recall and NDCG of ranked films."""
    hits = np.take_along_axis(hidden, np.maximum(ranked, 0), axis=1) * (ranked >= 0)
    n_hidden = hidden.sum(axis=1)
    gains = 1.0 / np.log2(np.arange(2, ranked.shape[1] + 2))
    ideal = np.cumsum(gains)[np.minimum(n_hidden.astype(int), ranked.shape[1]) - 1]
    recall = hits.sum(axis=1) / np.minimum(n_hidden, ranked.shape[1])
    return float(recall.mean()), float(((hits * gains).sum(axis=1) / ideal).mean())


if __name__ == "__main__":
    script(main)
