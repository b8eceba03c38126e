"""Token embeddings in closed form: a singular value decomposition of scaled co-occurrence counts. Floor 6."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from streamfit.errors import ConfigError
from streamfit.features import RBF, Chain, FeatureMap, Linear, Lookup
from streamfit.text.clusters import pair_embeddings

_DECAY = 0.8
_MIN_RANK = 8


def context_embeddings(contexts: np.ndarray, tokens: np.ndarray, vocab_size: int, dims: int, seed: int) -> Lookup:
    """Embed the tokens of a context, one table for each distance.

    For the tokens at distance d before the predicted one, counts of (token, next token) are embedded by
    `pair_embeddings` with rank ``dims[d]``; vectors have length 0.8^(d-1), so that near tokens weigh more in a
    distance.

    Parameters
    ----------
    contexts : int array of shape (n_rows, n_context)
        The nearest token last.
    tokens : int array of shape (n_rows,)
    vocab_size : int
    dims : int
        Dimensions of all tables together.
    seed : int

    Returns
    -------
    Lookup
        float32 tables, in the order of the context's columns.

    Raises
    ------
    ConfigError
        If `dims` leaves some table without dimensions.
    """
    n_context = contexts.shape[1]
    ranks = _ranks(n_context, dims, vocab_size)
    tables = []
    with threadpool_limits(1):  # the same bits on machines with other numbers of cores
        for column in range(n_context):
            distance = n_context - column
            pairs = (contexts[:, column], tokens)
            counts = scipy.sparse.coo_matrix((np.ones(len(tokens)), pairs), shape=(vocab_size, vocab_size)).tocsr()
            vectors = pair_embeddings(counts, ranks[distance - 1], seed)
            tables.append((_DECAY ** (distance - 1) * vectors).astype(np.float32))
    return Lookup(tuple(tables))


def _ranks(n_context: int, dims: int, vocab_size: int) -> list[int]:
    """Share dimensions among distances: half to the nearest, half of the rest to the next, and so on."""
    if dims < _MIN_RANK * n_context:
        msg = f"{dims} embedding dimensions for contexts of {n_context} tokens"
        raise ConfigError(msg, f"at least {_MIN_RANK * n_context}", "raise embedding_dims or shorten the context")
    shares = 0.5 ** np.arange(1, n_context + 1)
    spare = dims - _MIN_RANK * n_context
    ranks = [_MIN_RANK + int(spare * share / shares.sum()) for share in shares]
    ranks[0] += dims - sum(ranks)
    return [min(rank, vocab_size - 1) for rank in ranks]


def context_features(
    embedding: Lookup, contexts: np.ndarray, n_centers: int, *, linear: bool, gamma: float | None, seed: int
) -> FeatureMap:
    """RBF network over embedded contexts, with the embedding itself beside it if `linear`.

    Centers are real contexts: the sampled row nearest to each center of a k-means clustering (five Lloyd steps from
    random rows), since a random sample crowds around the most frequent contexts.

    Parameters
    ----------
    embedding : Lookup
    contexts : int array of shape (n_rows, n_context)
        A sample to cluster, distinct rows of it being the candidates.
    n_centers : int
        0 for the embedding alone.
    linear : bool
    gamma : float, optional
        Without it 2 / median squared distance between sample and centers.
    seed : int

    Raises
    ------
    ConfigError
        If there are fewer distinct contexts than centers.
    """
    from sklearn.cluster import KMeans  # takes long, and only a new language model needs it

    if not n_centers:
        return embedding
    candidates = np.unique(contexts, axis=0)
    if len(candidates) < n_centers:
        msg = f"{n_centers} centers from {len(candidates)} distinct contexts"
        raise ConfigError(msg, "no more centers than distinct contexts", "lower `n_centers`, or give more text")
    x = embedding(contexts)
    rng = np.random.default_rng(seed)
    with threadpool_limits(1):
        start = embedding(candidates[rng.choice(len(candidates), size=n_centers, replace=False)])
        clusters = KMeans(n_centers, init=start, n_init=1, max_iter=5).fit(x).cluster_centers_
        rows, distances = _nearest_rows(embedding(candidates), clusters, x, seed)
    gamma = gamma or 2.0 / float(np.median(distances))
    rbf = RBF(embedding(candidates[rows]), gamma)
    return Chain(embedding, rbf + Linear(embedding.n_features) if linear else rbf)


def _nearest_rows(
    candidates: np.ndarray, clusters: np.ndarray, sample: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Index of a different candidate near each cluster center, and squared distances of some rows to them all."""
    distances = _squared_distances(clusters, candidates)
    taken: set[int] = set()
    rows = []
    for row in distances:
        near = np.argpartition(row, min(len(taken), len(row) - 1))[: len(taken) + 1]
        best = next(int(j) for j in near[np.argsort(row[near], kind="stable")] if int(j) not in taken)
        taken.add(best)
        rows.append(best)
    some = np.random.default_rng(seed).choice(len(sample), size=min(1000, len(sample)), replace=False)
    return np.array(rows), _squared_distances(sample[some], candidates[np.array(rows)])


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cross = a @ b.T
    return np.asarray(np.maximum((a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2.0 * cross, 0.0))


def sample_rows(n_rows: int, size: int, seed: int) -> np.ndarray:
    """Indices of a random sample, ascending."""
    size = min(size, n_rows)
    return np.sort(np.random.default_rng(seed).choice(n_rows, size=size, replace=False))
