"""Fitting a language model: what is frozen before the pass, and what is put together after the solve.

Floor 6. Between the two stands `streamfit.engine.accumulate`, which knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamfit.arrays import Precision
from streamfit.corpus import Documents
from streamfit.counted import piece_rows
from streamfit.errors import CorpusError, MismatchError, ShardError
from streamfit.frame import Frame
from streamfit.models import LinearModel
from streamfit.repeats import CountRows, choose_counting
from streamfit.solve import Solution
from streamfit.store import Header, Store
from streamfit.targets import OneHot
from streamfit.text.contexts import TokenSource, context_rows, counts_of
from streamfit.text.embeddings import context_embeddings, context_features, sample_rows
from streamfit.text.mixture import n_buckets
from streamfit.text.model import LanguageModel, Projection
from streamfit.text.ngram import NgramCounts
from streamfit.text.origins import ORIGINS, find_origins, numbered, origins_bytes, origins_info
from streamfit.text.tokenizer import Tokenizer, make_tokenizer, tokenizer_id

_TOKENIZER = "tokenizer.json"
_CLUSTER_ROWS = 30_000
_FRAME_ROWS = 16_384
_REPEATS_ROWS = 2**20
"""Rows of sampled shards that are looked through for equal contexts."""


@dataclass(frozen=True)
class LanguageSettings:
    """What is chosen before the corpus is read.

    Parameters
    ----------
    vocab_size : int
        Of a tokenizer that is trained.
    tokenizer : str
        'bpe' or 'unigram', which are trained on the sample, or the path of a tokenizer's .json.
    n_context : int
        Tokens in a context.
    embedding_dims : int
        Dimensions of an embedded context, shared among its tokens.
    n_centers : int
        RBF centers, real contexts of the sample.
    gamma : float, optional
        Without it 2 / median squared distance to a center.
    linear : bool
        Whether the embedded context itself stands beside the RBF features.
    ngram_order : int
        Of the n-gram expert.
    sample_bytes : int
        Text that tokenizer, embeddings and centers are made from.
    precision : {'float32', 'float64'}
    n_folds : int
    seed : int
    """

    vocab_size: int = 4096
    tokenizer: str = "bpe"
    n_context: int = 6
    embedding_dims: int = 256
    n_centers: int = 512
    gamma: float | None = None
    linear: bool = True
    ngram_order: int = 3
    sample_bytes: int = 64_000_000
    precision: Precision = "float32"
    n_folds: int = 5
    seed: int = 0


def prepare(
    documents: Documents,
    settings: LanguageSettings,
    *,
    reading: dict[str, Any] | None = None,
    skip_bad_shards: bool = False,
    count_rows: CountRows = "never",
    report: Callable[[str], None] = lambda _: None,
) -> Header:
    """Train the tokenizer, make embeddings, choose centers, and freeze them as a store's header.

    Parameters
    ----------
    documents : Documents
    settings : LanguageSettings
    reading : dict, optional
        JSON that the header keeps besides: how documents are read and split, which must never change, lest text
        that was counted be taken for held out.
    skip_bad_shards : bool
        Leave undecodable shards out of the sample.
    count_rows : {'auto', 'always', 'never'}
        Whether equal contexts of a shard are multiplied once, with the count of each token that follows.
    report : callable
        Told what was decided of that.

    Raises
    ------
    ShardError
        If a shard of the sample cannot be decoded and is not skipped.
    CorpusError
        If there is no text.
    """
    sampled = list(_sample_texts(documents, settings, skip_bad_shards))
    texts = [text for _, shard in sampled for text in shard]
    if not any(texts):
        msg = "a corpus without any text"
        raise CorpusError(msg, "at least one document that is not empty", "check the paths of [corpus]")
    tokenizer = make_tokenizer(settings.tokenizer, texts, settings.vocab_size)
    encoded = tokenizer.encode(texts)
    contexts, tokens = context_rows(encoded, settings.n_context)
    embedding = context_embeddings(contexts, tokens, tokenizer.vocab_size, settings.embedding_dims, settings.seed)
    features = context_features(
        embedding,
        contexts[sample_rows(len(contexts), _CLUSTER_ROWS, settings.seed)],
        settings.n_centers,
        linear=settings.linear,
        gamma=settings.gamma,
        seed=settings.seed,
    )
    targets = OneHot(tokenizer.vocab_size)
    rows = sample_rows(len(contexts), _FRAME_ROWS, settings.seed)
    choice = choose_counting(
        count_rows,
        _pieces(contexts, [len(ids) + 1 for ids in encoded], [len(shard) for _, shard in sampled], settings.seed),
        features.n_features,
        tokenizer.vocab_size,
        one_hot=True,
    )
    report(choice.line())
    return Header(
        features=features,
        targets=targets,
        frame=Frame.from_sample(features(contexts[rows]), tokens[rows], targets, features.bounds),
        precision=settings.precision,
        n_folds=settings.n_folds,
        reader={
            "kind": "tokens",
            "n_context": settings.n_context,
            "ngram_order": settings.ngram_order,
            "settings": {**asdict(settings), "tokenizer": tokenizer_id(settings.tokenizer), **(reading or {})},
            **({"counting": choice.to_json()} if choice.counted else {}),
        },
        files={
            _TOKENIZER: tokenizer.serialized.encode(),
            ORIGINS: origins_bytes(find_origins(features, tokenizer, numbered(sampled))),
        },
        counted=choice.counted,
    )


def _pieces(contexts: np.ndarray, lengths: list[int], n_documents: list[int], seed: int) -> Iterator[np.ndarray]:
    """Contexts of sampled shards, in the pieces in which equal ones are looked for, until there are enough rows."""
    ends = np.cumsum([0, *lengths])[np.cumsum([0, *n_documents])]
    limit, n_rows = piece_rows(contexts.shape[1], 1), 0
    for index in np.random.default_rng(seed).permutation(len(n_documents)):
        for lo in range(int(ends[index]), int(ends[index + 1]), limit):
            if n_rows >= _REPEATS_ROWS:
                return
            piece = contexts[lo : min(lo + limit, int(ends[index + 1]))]
            n_rows += len(piece)
            yield piece


def _sample_texts(documents: Documents, settings: LanguageSettings, skip: bool) -> Iterator[tuple[str, list[str]]]:
    shards = documents.shards()
    order = np.random.default_rng(settings.seed).permutation(len(shards))
    left = settings.sample_bytes
    taken = []
    for index in order:
        if left <= 0:
            break
        taken.append(index)
        left -= shards[index].size
    for index in sorted(taken):
        try:
            yield shards[index].key, documents.documents(shards[index])
        except ShardError:
            if not skip:
                raise


def token_source(header: Header, documents: Documents) -> TokenSource:
    """Documents read the way a store's header says.

    Raises
    ------
    MismatchError
        If the store is not one of token contexts.
    """
    if header.reader.get("kind") != "tokens":
        msg = f"a store of {header.reader.get('kind', 'unknown')} rows"
        raise MismatchError(msg, "a store of token contexts")
    tokenizer = Tokenizer(header.files[_TOKENIZER].decode())
    return TokenSource(documents, tokenizer, header.reader["n_context"], header.reader["ngram_order"])


def assemble(store: Store, solution: Solution, validation: Documents, *, n_rows: int = 30_000) -> LanguageModel:
    """Put solved weights, counts and validation text together.

    Parameters
    ----------
    store : Store
    solution : Solution
        Of the store's moments.
    validation : Documents
        Held-out text: the projection and the mixture weights are chosen on it.
    n_rows : int
        Validation rows that are used, a random sample.
    """
    header = store.header
    source = token_source(header, validation)
    counts = NgramCounts.zeros(source.ngram_order, source.tokenizer.vocab_size)
    for tables in store.tables():
        counts = counts + counts_of(tables, source.ngram_order, source.tokenizer.vocab_size)
    model = LanguageModel(
        tokenizer=source.tokenizer,
        n_context=source.n_context,
        network=LinearModel(
            header.features,
            solution,
            {"store": store.head().commit, "n_rows": store.head().n_rows, **origins_info(header.files)},
        ),
        counts=counts,
        projection=Projection(),
        mixture=np.full((n_buckets(source.ngram_order), 2), 0.5),
    )
    texts = [text for shard in validation.shards() for text in validation.documents(shard)]
    contexts, tokens = context_rows(source.tokenizer.encode(texts), source.n_context)
    rows = sample_rows(len(contexts), n_rows, seed=0)
    return model.calibrated(contexts[rows], tokens[rows])
