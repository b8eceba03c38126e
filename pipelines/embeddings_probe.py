"""A linear probe: what a frozen encoder's embeddings say of ten classes, read out by one solve.

    python pipelines/embeddings_probe.py [configs/embeddings_probe.toml] [--machine FILE]

Embeddings are a column of half-float lists in Parquet, with a label and a column that says which rows are for testing:
put your own in the folder that the config names. Where there are none, pictures of Fashion-MNIST are embedded first
(apt-get, 30 MB) by an encoder that learns no labels: patches of 6 x 6 are whitened and compared with patches of the
training pictures, and similarities are pooled over quadrants (Coates, Ng and Lee, An analysis of single-layer networks
in unsupervised feature learning, AISTATS 2011).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.fetch import fashion
from streamfit.cli import script
from streamfit.config import RidgeProblem, load_machine, load_problem
from streamfit.corpus import Files
from streamfit.engine import connect, say
from streamfit.errors import ConfigError
from streamfit.jobs import fit
from streamfit.models import LinearModel
from streamfit.readers import held_out_table
from streamfit.tables import TableScore, score_table

CONFIG = Path("configs/embeddings_probe.toml")
PATCH, STRIDE, N_FILTERS = 6, 2, 128
_FILE_ROWS, _GROUP_ROWS = 10_000, 2_500


def main(config: Path = CONFIG, *, machine: Path | None = None) -> TableScore:
    """Fit and score; returns the score of the test rows."""
    console, problem, where = Console(), load_problem(config), load_machine(machine)
    if not isinstance(problem, RidgeProblem):
        msg = f"{config}: kind = {problem.kind!r}"
        raise ConfigError(msg, "'ridge'")
    root = Path(problem.corpus.root)
    if not root.exists():
        with np.load(fashion(root.parent)) as pictures:
            say(console, f"embedding {sum(len(pictures[f'{p}_labels']) for p in ('train', 'test')):,} pictures", "dim")
            write_embeddings(root, {name: pictures[name] for name in pictures.files})
    with connect(where) as client:
        done = fit(problem, where, client, console)
    assert isinstance(done.model, LinearModel)
    test = held_out_table(done.store.header.reader, Files(str(root)), "test")
    score = score_table(done.model, test)
    say(console, f"{score.n_rows:,} test rows: accuracy {score.accuracy:.2%}")
    return score


def write_embeddings(folder: Path, pictures: dict[str, np.ndarray]) -> None:
    """Embed pictures and write them as a data set; the folder appears when it is whole."""
    encoder = Encoder.of(pictures["train_images"])
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        images, labels = pictures[f"{part}_images"], pictures[f"{part}_labels"]
        for lo in range(0, len(labels), _FILE_ROWS):
            found = encoder(images[lo : lo + _FILE_ROWS]).astype(np.float16)
            column = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
            split = pa.array([part] * len(found))
            table = pa.table(
                {"embedding": column, "label": labels[lo : lo + _FILE_ROWS].astype(np.int64), "split": split}
            )
            pq.write_table(table, partial / f"{part}-{lo // _FILE_ROWS}.parquet", row_group_size=_GROUP_ROWS)
    partial.replace(folder)


class Encoder:
    """Similarities of whitened patches to others, pooled over the quadrants of a picture.

    Parameters
    ----------
    mean : array of shape (PATCH², )
    whiten : array of shape (PATCH², PATCH²)
    filters : array of shape (PATCH², n_filters)
        Whitened patches, of length 1.
    """

    def __init__(self, mean: np.ndarray, whiten: np.ndarray, filters: np.ndarray) -> None:
        self.mean, self.whiten, self.filters = mean, whiten, filters

    @classmethod
    def of(cls, images: np.ndarray, n_filters: int = N_FILTERS) -> Encoder:
        """Take patches of some pictures, drawn with a fixed seed."""
        rng = np.random.default_rng(0)
        some = patches(images[rng.choice(len(images), min(len(images), 2000), replace=False)])
        flat = normalised(some.reshape(-1, PATCH * PATCH))
        mean = flat.mean(axis=0)
        values, vectors = np.linalg.eigh(np.cov(flat - mean, rowvar=False))
        whiten = (vectors / np.sqrt(values + 0.1)) @ vectors.T
        chosen = (flat[rng.choice(len(flat), n_filters, replace=False)] - mean) @ whiten
        filters = (chosen / (np.linalg.norm(chosen, axis=1, keepdims=True) + 1e-8)).T
        return cls(mean.astype(np.float32), whiten.astype(np.float32), filters.astype(np.float32))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Embed pictures: shape (n_pictures, 8 n_filters)."""
        blocks = []
        for lo in range(0, len(images), 500):
            grid = patches(images[lo : lo + 500])
            n, side = len(grid), grid.shape[1]
            flat = (normalised(grid.reshape(-1, PATCH * PATCH)) - self.mean) @ self.whiten @ self.filters
            found = flat.reshape(n, side, side, -1)
            both = np.concatenate([np.maximum(found - 0.25, 0), np.maximum(-found - 0.25, 0)], axis=3)
            half = side // 2
            parts = [both[:, a, b].mean(axis=(1, 2)) for a in (slice(0, half), slice(half, None))
                     for b in (slice(0, half), slice(half, None))]  # fmt: skip
            blocks.append(np.concatenate(parts, axis=1))
        return np.concatenate(blocks)


def patches(images: np.ndarray) -> np.ndarray:
    """All patches on a grid: shape (n_pictures, side, side, PATCH, PATCH)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    return np.asarray(windows[:, ::STRIDE, ::STRIDE], dtype=np.float32)


def normalised(flat: np.ndarray) -> np.ndarray:
    """Patches of mean 0 and deviation 1, flat ones nearly 0."""
    centred = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(centred / np.sqrt(centred.var(axis=1, keepdims=True) + 10.0), dtype=np.float32)


if __name__ == "__main__":
    script(main)
