"""Closed-form embeddings of tokens by what follows them, and clusters of tokens that are followed alike. Floor 6."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from streamfit.text.ngram import NgramCounts

_ITERATIONS = 15


def pair_embeddings(pairs: scipy.sparse.csr_matrix, rank: int, seed: int) -> np.ndarray:
    """Unit vectors of the rows of a table of counts.

    With r the row sums of the counts C, ``sqrt(C_ij) / (r_i + 1)^(1/4)`` has the singular value decomposition U S V';
    a row's vector is its row of U S^(1/2), scaled to length one. The square root and the power of r are those of
    canonical correlation analysis after a variance-stabilising transform (Stratos, Collins and Hsu, Model-based word
    embeddings from decompositions of count matrices, 2015); the quarter instead of the half power, on one side only,
    is what did best on validation text.

    Parameters
    ----------
    pairs : sparse matrix of shape (n_rows, n_columns)
    rank : int
    seed : int

    Returns
    -------
    float32 array of shape (n_rows, rank)
    """
    from sklearn.utils.extmath import randomized_svd  # takes long, and only a new language model needs it

    counts = pairs.copy()
    row_sums = np.asarray(counts.sum(axis=1)).ravel()
    counts.data = np.sqrt(counts.data)
    scaled = (scipy.sparse.diags((row_sums + 1.0) ** -0.25) @ counts).tocsr().astype(np.float32)
    with threadpool_limits(1):  # the same bits on machines with other numbers of cores
        left, singular, _ = randomized_svd(scaled, n_components=rank, n_oversamples=16, n_iter=4, random_state=seed)
    vectors = left * np.sqrt(singular)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return np.asarray(vectors, np.float32)


def token_vectors(counts: NgramCounts, dims: int, seed: int) -> np.ndarray:
    """Embedding of each token by what follows it: float32 unit vectors of shape (vocab_size, dims)."""
    return pair_embeddings(_pairs(counts), max(1, min(dims, counts.vocab_size - 1)), seed)


def _pairs(counts: NgramCounts) -> scipy.sparse.csr_matrix:
    bigrams, shape = counts.lower(2), (counts.vocab_size, counts.vocab_size)
    places = (bigrams.grams[:, 0], bigrams.grams[:, 1])
    return scipy.sparse.coo_matrix((bigrams.counts.astype(np.float64), places), shape=shape).tocsr()


def token_clusters(counts: NgramCounts, sizes: Sequence[int], dims: int, seed: int) -> dict[int, np.ndarray]:
    """Clusters of tokens by the distribution of the token that follows.

    k-means of the embeddings of (token, next token) counts, each token weighing the square root of its count.

    Parameters
    ----------
    counts : NgramCounts
        Of order 2 or more.
    sizes : sequence of int
        Numbers of clusters; of a small vocabulary at most half its size.
    dims : int
        Dimensions of the embedding.
    seed : int

    Returns
    -------
    dict of int to int32 array of shape (vocab_size,)
        The cluster of each token, below its size, by the size asked for.
    """
    from sklearn.cluster import KMeans  # takes long, and only a new language model needs it

    if not sizes:
        return {}
    vectors, pairs = token_vectors(counts, dims, seed), _pairs(counts)
    weights = np.sqrt(np.asarray(pairs.sum(axis=1)).ravel() + 1.0)
    found = {}
    with threadpool_limits(1):
        for size in sizes:
            n = max(1, min(size, len(np.unique(vectors, axis=0)), counts.vocab_size // 2))
            means = KMeans(n, init="random", n_init=1, max_iter=_ITERATIONS, random_state=seed, algorithm="lloyd")
            found[size] = means.fit(vectors, sample_weight=weights).labels_.astype(np.int32)
    return found
