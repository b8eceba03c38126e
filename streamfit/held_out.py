"""Text that was held out: what of it may be scored, and what a language model is worth on it. Floor 7."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from streamfit.config import LanguageProblem
from streamfit.corpus import Documents, TextFiles
from streamfit.engine import n_workers
from streamfit.errors import CorpusError, ShardError, StreamfitError
from streamfit.plan import Shard
from streamfit.store import Store
from streamfit.text import Evaluator, LanguageModel, Score, add_scores
from streamfit.text.evaluate import sampled_score
from streamfit.text.fit import CHOICE_ROWS

log = logging.getLogger("streamfit")
_SCORED_TOKENS = 10_000
"""Held-out tokens that a fit scores at its end; `streamfit report` scores all."""
_TOLD = 3
"""Files that are named one by one."""
_SCORED_BYTES = 64_000_000
"""Held-out text that these are drawn from, about."""


@dataclass(frozen=True)
class HeldOutScore:
    """What a language model is worth on text that was held out, and how its mixture weights were chosen.

    Parameters
    ----------
    part : {'test', 'validation'}
        Test text; where there is none, the validation text that weights were chosen on.
    n_shards : int
        Shards of text that the scored tokens were drawn from.
    score : Score
    n_validation : int
        Shards of the validation part.
    gap : float, optional
        Certificate of the mixture; see `LanguageModel`.
    unread : tuple of str
        Why files of test text could not be read, one each.
    skipped : tuple of str
        Validation files that could not be read, and were skipped as was asked for.
    """

    part: str
    n_shards: int
    score: Score
    n_validation: int
    gap: float | None
    unread: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        facts = {"part": self.part, "shards": self.n_shards, **self.score.to_json()}
        named = {"unread": self.unread, "skipped": self.skipped}
        told = {name: list(files) for name, files in named.items() if files}
        return {**facts, "validation_shards": self.n_validation, "mixture_gap": self.gap, **told}

    def lines(self) -> Iterator[str]:
        """The same for people."""
        row = self.score.to_json()
        bits = f", {row['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in row else ""
        told = "" if self.part == "test" else ", those that its weights were chosen on"
        if self.skipped:
            others = f" and {len(self.skipped) - _TOLD:,} others" if len(self.skipped) > _TOLD else ""
            yield f"validation text left out, which cannot be read: {', '.join(self.skipped[:_TOLD])}{others}"
        yield from (f"test text left out: {why}" for why in self.unread[:_TOLD])
        if (n_others := len(self.unread) - _TOLD) > 0:
            yield f"and {n_others:,} other files of test text"
        yield (
            f"held out: perplexity {row['perplexity']:,.2f}{bits}, top-1 {row['top1']:.1%},"
            f" of {self.score.n_tokens:,} tokens of {self.n_shards:,} {self.part} shards{told}"
        )
        if self.gap is not None:
            yield (
                f"mixture weights: at most {self.gap:.1e} nats a token above the optimum of"
                f" up to {CHOICE_ROWS:,} tokens of {self.n_validation:,} validation shards"
            )


def held_out(store: Store, documents: Documents, *, skip_bad_shards: bool = False) -> Documents:
    """Documents without those that the store has counted, for instance copies of a training file.

    Where a hash of each text splits a file, it is in part counted, and its texts are told apart. Files that cannot be
    read may be left out as well.

    Raises
    ------
    CorpusError
        If nothing is left.
    """
    by_text = not isinstance(documents, TextFiles) and getattr(documents, "split", None) is not None
    left = documents if by_text else replace(documents, leave_out=frozenset(store.counted()))
    if skip_bad_shards:
        bad = {shard.content_id: shard.key for shard in left.shards() if _is_bad(left, shard)}
        for key in bad.values():
            log.warning("event=skipped shard=%s part=held-out", key)
        left = replace(left, leave_out=left.leave_out | frozenset(bad))
    if not left.shards():
        msg = "held-out files that were all counted in training"
        raise CorpusError(msg, "some that were not", "check `split` and the paths of [corpus]")
    return left


def refuse_unreadable(documents: Documents) -> None:
    """Read validation text before the pass, as far as a sample of it goes, rather than after it.

    Raises
    ------
    ShardError
        Of the first file that cannot be read.
    """
    n_bytes = 0
    for shard in documents.shards():
        n_bytes += shard.size
        if n_bytes > _SCORED_BYTES:
            break
        documents.documents(shard)


def score_held_out(
    problem: LanguageProblem, store: Store, model: LanguageModel, *, skip_bad_shards: bool = False
) -> HeldOutScore:
    """Score a model on a sample of the test text; of the validation text where a corpus has no other.

    Files that cannot be read are left out: the model is there, and it is not them that it is told by.
    """
    given = problem.corpus.documents("validation")
    validation = held_out(store, given, skip_bad_shards=skip_bad_shards)
    bad = validation.leave_out - given.leave_out - frozenset(store.counted())
    skipped = tuple(shard.key for shard in given.shards() if shard.content_id in bad)
    part, n_shards, texts, unread = "test", 0, list[str](), list[str]()
    with suppress(CorpusError):  # no part for tests, or all of it was counted
        n_shards, texts = _some_texts(held_out(store, problem.corpus.documents("test")), unread)
    if not texts:
        part, (n_shards, texts) = "validation", _some_texts(validation, [])
    score = sampled_score(model, texts, _SCORED_TOKENS)
    n_validation = len(validation.shards())
    return HeldOutScore(part, n_shards, score, n_validation, model.mixture_gap, tuple(unread), skipped)


def _some_texts(documents: Documents, unread: list[str]) -> tuple[int, list[str]]:
    """Texts of random shards, as many as there are or as are enough, and the number of these shards.

    Why others could not be read is noted.
    """
    shards = documents.shards()
    n_shards, n_bytes, texts = 0, 0, list[str]()
    for index in np.random.default_rng(0).permutation(len(shards)):
        try:
            found = documents.documents(shards[index])
        except ShardError as error:
            log.warning("event=skipped shard=%s part=test", shards[index].key)
            unread.append(str(error))
            continue
        n_shards, n_bytes, texts = n_shards + bool(found), n_bytes + shards[index].size, texts + found
        if n_bytes > _SCORED_BYTES:
            break
    return n_shards, texts


def _is_bad(documents: Documents, shard: Shard) -> bool:
    try:
        documents.documents(shard)
    except ShardError:
        return True
    return False


def fitted_among(model: Path, documents: Sequence[Documents]) -> str:
    """A line on what a model's run has counted of some texts; empty if that is nothing, or no run is beside it."""
    beside, counted = model.absolute().parent / "store", set[str]()
    with suppress(StreamfitError):  # a store that cannot be read is no reason not to score a text
        if Store.exists(beside):
            counted = {shard.bytes_id for shard in Store(beside).counted().values()}
    if not counted:
        return ""
    shards = [shard for each in documents for shard in each.shards()]
    n = sum(shard.bytes_id in counted for shard in shards)
    return f"{n:,} of {len(shards):,} files or parts of them were fitted: their text is not held out" if n else ""


def evaluate_documents(model: LanguageModel, documents: Documents, client: Client | None) -> dict[str, Score]:
    """Score a language model and its baselines on documents, on the workers where there are any."""
    shards = documents.shards()
    evaluator = Evaluator(model)
    if client is None:
        return add_scores([_score_shards(evaluator, documents, shards)])
    # A few pieces a worker, alike in size, so that none ends much later than the rest.
    n_pieces = min(len(shards), 3 * n_workers(client))
    pieces: list[list[Shard]] = [[] for _ in range(n_pieces)]
    for shard in sorted(shards, key=lambda s: -s.size):
        min(pieces, key=lambda piece: sum(s.size for s in piece)).append(shard)
    remote = client.scatter(evaluator, broadcast=True)
    futures = client.map(_score_piece, pieces, evaluator=remote, documents=documents, pure=False)
    return add_scores(client.gather(futures))


def _score_piece(piece: list[Shard], *, evaluator: Evaluator, documents: Documents) -> dict[str, Score]:
    return _score_shards(evaluator, documents, piece)


def _score_shards(evaluator: Evaluator, documents: Documents, shards: list[Shard]) -> dict[str, Score]:
    return add_scores(evaluator.documents(documents.documents(shard)) for shard in shards)
