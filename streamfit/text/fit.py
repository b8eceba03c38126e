"""Fitting a language model: what is frozen before the pass, and what is put together after the solve.

Floor 6. Between the two stands `streamfit.engine.accumulate`, which knows nothing of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np

from streamfit.arrays import Precision
from streamfit.corpus import Documents, Placed
from streamfit.counted import piece_rows
from streamfit.errors import ConfigError, CorpusError, MismatchError, ShardError
from streamfit.features import Chain, Concat, Decayed, FeatureMap, Lookup, Nearest
from streamfit.frame import Frame
from streamfit.models import LinearModel
from streamfit.repeats import CountRows, choose_counting
from streamfit.solve import Solution, solve
from streamfit.store import Header, Mix, Store
from streamfit.targets import OneHot
from streamfit.text.adapt import with_cache
from streamfit.text.contexts import TokenSource, Windows, context_rows, counts_of
from streamfit.text.embeddings import context_embeddings, context_features, sample_rows
from streamfit.text.experts import ExpertSettings
from streamfit.text.mixture import n_buckets
from streamfit.text.model import LanguageModel, Projection
from streamfit.text.ngram import NgramCounts
from streamfit.text.origins import ORIGINS, find_origins, origins_bytes, origins_info
from streamfit.text.tokenizer import Tokenizer, make_tokenizer, tokenizer_id
from streamfit.text.topic import DECAYS, FOURIER_ROWS, Topic, fourier_map, topic_map

_TOKENIZER = "tokenizer.json"
CHOICE_ROWS = 30_000
"""Held-out tokens that mixture weights are chosen on, at most."""
_CLUSTER_ROWS = 30_000
_FRAME_ROWS = 16_384
_TOPIC_TOKENS = 4_000_000
"""Tokens of the sample that the topic's embedding is made from: its pairs would fill memory."""
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
        'bpe', 'unigram' or 'words', which are made from the sample, or the path of a tokenizer's .json.
    n_context : int
        Tokens in a context of the network and of the n-grams.
    embedding_dims : int
        Dimensions of an embedded context, shared among its tokens.
    n_centers : int
        RBF centers, real contexts of the sample; 0 for none.
    gamma : float, optional
        Without it 2 / median squared distance to a center.
    linear : bool
        Whether the embedded context itself stands beside the RBF features.
    ngram_order : int
        Of the n-grams that are counted, for all experts.
    topic_dims : int
        Dimensions of the decayed sums that tell what a text is about; 0 for none.
    topic_decay : float
        How much less a token counts for each token after it.
    topic_window : int
        Tokens that decayed sums run over, the topic's and those below.
    n_fourier : int
        Random Fourier features of decayed sums of embeddings, in the network beside its centers; 0 for none.
    fourier_decays : tuple of float
        Of these sums, side by side: by default half-lives of 3, 11, 46 and 231 tokens.
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
    topic_dims: int = 0
    topic_decay: float = 0.99
    topic_window: int = 256
    n_fourier: int = 0
    fourier_decays: tuple[float, ...] = DECAYS
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
    texts = [each.text for shard in sampled for each in shard]
    if not any(texts):
        msg = "a corpus without any text"
        raise CorpusError(msg, "at least one document that is not empty", "check the paths of [corpus]")
    tokenizer = make_tokenizer(settings.tokenizer, texts, settings.vocab_size)
    encoded = tokenizer.encode(texts)
    features = _features(encoded, tokenizer.vocab_size, settings)
    windows = Windows(encoded, features.n_inputs)
    targets = OneHot(tokenizer.vocab_size)
    rows = sample_rows(len(windows), _FRAME_ROWS, settings.seed)
    choice = choose_counting(
        count_rows,
        _pieces(windows, [len(ids) + 1 for ids in encoded], [len(shard) for shard in sampled], settings.seed),
        features.n_features,
        tokenizer.vocab_size,
        one_hot=True,
    )
    report(choice.line())
    return Header(
        features=features,
        targets=targets,
        frame=Frame.from_sample(features(windows[rows]), windows.tokens[rows], targets, features.bounds),
        precision=settings.precision,
        n_folds=settings.n_folds,
        reader={
            "kind": "tokens",
            "n_context": features.n_inputs,
            "ngram_order": settings.ngram_order,
            "settings": {**asdict(settings), "tokenizer": tokenizer_id(settings.tokenizer), **(reading or {})},
            **({"counting": choice.to_json()} if choice.counted else {}),
        },
        files={
            _TOKENIZER: tokenizer.serialized.encode(),
            ORIGINS: origins_bytes(find_origins(features, tokenizer, chain.from_iterable(sampled))),
        },
        counted=choice.counted,
    )


def _features(encoded: list[np.ndarray], vocab_size: int, settings: LanguageSettings) -> FeatureMap:
    """The network's features, and those of the topic, the last of two where there are both.

    Where there are neither, as for counts alone, the nearest token's number stands for the features that a store must
    have.
    """
    far = bool(settings.topic_dims or settings.n_fourier)
    width = max(settings.n_context, settings.topic_window) if far else settings.n_context
    near: list[FeatureMap] = []
    if settings.n_centers or settings.linear:
        contexts, tokens = context_rows(encoded, settings.n_context)
        embedding = context_embeddings(contexts, tokens, vocab_size, settings.embedding_dims, settings.seed)
        sample = contexts[sample_rows(len(contexts), _CLUSTER_ROWS, settings.seed)]
        network = context_features(
            embedding, sample, settings.n_centers, linear=settings.linear, gamma=settings.gamma, seed=settings.seed
        )
        near.append(network if width == settings.n_context else Chain(Nearest(width, settings.n_context), network))
    if not (near or far):
        number = np.linspace(-1.0, 1.0, vocab_size, dtype=np.float32)[:, None]
        return Chain(Nearest(width, 1), Lookup((number,)))
    if not far:
        return near[0]
    stream = np.concatenate([np.append(ids, 0) for ids in encoded])[:_TOPIC_TOKENS]
    dims = settings.topic_dims or settings.embedding_dims
    topic = topic_map(stream, vocab_size, dims, settings.topic_decay, width, settings.seed)
    if settings.n_fourier:
        windows = Windows(encoded, width)
        rows = sample_rows(len(windows), FOURIER_ROWS, settings.seed)
        near.append(fourier_map(topic, settings.fourier_decays, settings.n_fourier, windows[rows], settings.seed))
    parts = [near[0] if len(near) == 1 else Concat(tuple(near))] if near else []
    parts += [topic] if settings.topic_dims else []
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def _pieces(contexts: Windows, lengths: list[int], n_documents: list[int], seed: int) -> Iterator[np.ndarray]:
    """Contexts of sampled shards, in the pieces in which equal ones are looked for, until there are enough rows."""
    ends = np.cumsum([0, *lengths])[np.cumsum([0, *n_documents])]
    limit, n_rows = piece_rows(contexts.n_tokens, 1), 0
    for index in np.random.default_rng(seed).permutation(len(n_documents)):
        for lo in range(int(ends[index]), int(ends[index + 1]), limit):
            if n_rows >= _REPEATS_ROWS:
                return
            piece = contexts[slice(lo, min(lo + limit, int(ends[index + 1])))]
            n_rows += len(piece)
            yield piece


def _sample_texts(documents: Documents, settings: LanguageSettings, skip: bool) -> Iterator[list[Placed]]:
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
            yield list(documents.placed(shards[index]))
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


def assemble(
    store: Store,
    solution: Solution,
    validation: Documents,
    *,
    experts: ExpertSettings | None = None,
    n_rows: int = CHOICE_ROWS,
    mix: Mix | None = None,
) -> LanguageModel:
    """Put solved weights, counts and validation text together.

    Parameters
    ----------
    store : Store
    solution : Solution
        Of the store's moments.
    validation : Documents
        Held-out text: the projection, the mixture weights and the topic's power are chosen on it.
    experts : ExpertSettings, optional
        What is mixed; network and n-grams without it.
    n_rows : int
        Validation rows that are used, a random sample.
    mix : Mix, optional
        What weighed the moments, for the n-gram counts: see `Mix.times`.

    Raises
    ------
    ConfigError
        If an expert is asked for that the store has no features for.
    """
    header, experts = store.header, experts or ExpertSettings()
    source = token_source(header, validation)
    sizes = source.ngram_order, source.tokenizer.vocab_size
    counts = counts_of({"ngram": NgramCounts.zeros(*sizes).table, **store.counts(mix)}, *sizes)
    network, topic = parted(store, solution, mix)
    if network is None and "network" in experts.experts:
        msg = "expert 'network' without RBF centers or linear features"
        raise ConfigError(msg, "other experts", "set n_centers or n_fourier, or linear = true")
    names = experts.names(source.ngram_order)
    model = LanguageModel(
        tokenizer=source.tokenizer,
        n_context=source.n_context,
        network=network,
        counts=counts,
        projection=Projection(),
        mixture=np.full((n_buckets(source.ngram_order), len(names)), 1.0 / len(names)),
        settings=experts,
        clusters=experts.clusters(counts),
        topic=topic,
    )
    texts = [text for shard in validation.shards() for text in validation.documents(shard)]
    windows = Windows(source.tokenizer.encode(texts), source.n_context)
    if not len(windows):
        msg = "no validation text: the hash of texts puts none of these few there"
        raise CorpusError(
            msg, "some to choose mixture weights on", "set `validation` files, or a larger share in `split`"
        )
    rows = sample_rows(len(windows), n_rows, seed=0)
    model = model.calibrated(windows[rows], windows.tokens[rows])
    return with_cache(model, windows, window=experts.cache) if experts.cache else model


def parted(store: Store, solution: Solution, mix: Mix | None = None) -> tuple[LinearModel | None, Topic | None]:
    """The network and the topic, each solved by itself from the sums of both where a store has both.

    Parameters
    ----------
    store : Store
    solution : Solution
        Of all features together: the network's if there is no topic, and else the alpha of the network.
    mix : Mix, optional
        What weighed the sums that it was solved from.

    Raises
    ------
    ConfigError
        If there is a topic, and the solution has more than one alpha.
    """
    features, head = store.header.features, store.head()
    info = {"store": head.commit, "n_rows": head.n_rows, **origins_info(store.header.files)}
    near, topic = near_and_topic(features)
    if topic is None:
        return None if near is None else LinearModel(features, solution, info), None
    if solution.target_alphas is not None or solution.block_alphas is not None:
        msg = "several alphas for a language model with a topic"
        raise ConfigError(msg, "one alpha: network and topic are solved apart", "leave out `per_target` and `blocks`")
    sums, split = store.moments(mix=mix).centered(), features.n_features - topic.n_features
    about = Topic(topic, sums.of(slice(split, None)), solution.alpha)
    if near is None:
        return None, about
    through_origin = not solution.intercept.any()
    network = solve(sums.of(slice(0, split)), solution.alpha, fit_intercept=not through_origin)
    return LinearModel(near, network, info), about


def near_and_topic(features: FeatureMap) -> tuple[FeatureMap | None, Decayed | None]:
    """The maps of the network and of the topic, as `prepare` puts them together; of counts alone neither."""
    if isinstance(features, Chain) and isinstance(features.outer, Lookup) and features.n_features == 1:
        return None, None
    if isinstance(features, Decayed):
        return None, features
    if not (isinstance(features, Concat) and isinstance(features.parts[-1], Decayed)):
        return features, None
    return features.parts[0], features.parts[-1]
