"""A smaller model from a model: what costs least on the corpus, or on prompts like those it will get, is left out.

Floor 6: imports model, network_sums, origins, solve.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from streamfit.centered import Centered, Statistic, as_centered
from streamfit.errors import ConfigError
from streamfit.models import LinearModel
from streamfit.moments import Moments
from streamfit.solve import IllConditionedWarning, prune, solve
from streamfit.text.model import LanguageModel
from streamfit.text.network_sums import KEPT, columns, network_of, network_sums
from streamfit.text.origins import center_block

SHARES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02)
"""Shares of the network's features that are tried; then none."""
_REFINEMENTS = 3
"""Sizes between two of these that are tried as well."""
_STEPS = 64
"""Times that costs of removals are compared, about."""
_TURN = 256
"""Neighbouring held-out rows that calibrate or judge together."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A smaller model, calibrated anew, and what it is worth.

    Parameters
    ----------
    model : LanguageModel
    n_features : int
        Of the network.
    n_bytes : int
        Of its arrays, as they are saved.
    perplexity : float
        On held-out text that it was not calibrated on.
    kept : float
        Perplexity of the whole model over its own: 1 where nothing is lost.
    """

    model: LanguageModel
    n_features: int
    n_bytes: int
    perplexity: float
    kept: float

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the model."""
        facts = {name: getattr(self, name) for name in ("n_features", "n_bytes", "perplexity", "kept")}
        return {"experts": list(self.model.settings.experts), "order": self.model.counts.order, **facts}


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows: some to calibrate each candidate on, and others to judge it by.

    Parameters
    ----------
    contexts, tokens : integer arrays of shape (n_rows, n_context) and (n_rows,)
    judged : bool array of shape (n_rows,)
        Which rows are the others.
    """

    contexts: np.ndarray
    tokens: np.ndarray
    judged: np.ndarray

    def calibrated(self, model: LanguageModel) -> LanguageModel:
        """The model with projection, mixture and topic chosen anew."""
        return model.calibrated(self.contexts[~self.judged], self.tokens[~self.judged])

    def perplexity(self, model: LanguageModel) -> float:
        """On the rows that judge."""
        contexts, tokens = self.contexts[self.judged], self.tokens[self.judged]
        nats = 0.0
        for lo in range(0, len(tokens), model.batch_rows):
            rows = slice(lo, lo + model.batch_rows)
            p = model.distribution(contexts[rows])
            nats -= float(np.log(p[np.arange(len(p)), tokens[rows]], dtype=np.float64).sum())
        return float(np.exp(nats / max(len(tokens), 1)))


def distill(
    model: LanguageModel,
    moments: Statistic,
    held_out: HeldOut,
    keep: float,
    *,
    report: Callable[[Candidate], None] = lambda _: None,
) -> Candidate:
    """Make a model smaller, as far as its held-out perplexity allows.

    First the network: its features leave in the order in which that raises the loss of the solve least, the others
    solved for again (see `streamfit.solve.prune`), and the smallest size is taken that keeps enough: of those in
    `SHARES`, then by halving the step to the next one below. Then experts leave one by one, the one first whose absence
    costs least. What is left is solved and calibrated as it would have been from the start; its weights are kept in
    float32, in which a model computes in any case.

    Parameters
    ----------
    model : LanguageModel
    moments : Moments
        Of its store, or with prompts among them; see `with_prompts`.
    held_out : HeldOut
    keep : float
        Least share to keep: the perplexity may rise to that of the whole model over `keep`. In (0, 1].
    report : callable
        Told of each candidate as it is judged, the whole network in float32 first.

    Returns
    -------
    Candidate
        The smallest that keeps enough; the whole network in float32 where none does.

    Raises
    ------
    ConfigError
        If `keep` is out of range, or the model has no network.
    """
    if not 0 < keep <= 1:
        msg = f"keep {keep}"
        raise ConfigError(msg, "above 0 and at most 1, such as 0.999")
    whole = held_out.calibrated(model)
    reference = held_out.perplexity(whole)

    def judged(candidate: LanguageModel) -> Candidate:
        candidate = held_out.calibrated(candidate)
        perplexity = held_out.perplexity(candidate)
        n_features = 0 if candidate.network is None else candidate.network.features.n_features
        found = Candidate(candidate, n_features, model_bytes(candidate), perplexity, reference / perplexity)
        report(found)
        return found

    path = NetworkPath.of(model, moments)
    sizes = sorted({max(1, round(share * path.n)) for share in SHARES}, reverse=True)
    every = [judged(path.at(size)) for size in sizes]
    best = _smallest(every, keep)
    # Between the smallest size that keeps enough and the next one below, which does not.
    low, high = max((size for size in sizes if size < best.n_features), default=0), best.n_features
    for _ in range(_REFINEMENTS):
        middle = (low + high) // 2
        if middle in (low, high):
            break
        every.append(judged(path.at(middle)))
        low, high = (low, middle) if every[-1].kept >= keep else (middle, high)
    others = tuple(name for name in model.settings.experts if name != "network")
    if others:
        every.append(judged(_with_experts(model, others)))
    best = _smallest(every, keep)
    while len(best.model.settings.experts) > 1:
        without = [judged(_with_experts(best.model, rest)) for rest in _one_less(best.model.settings.experts)]
        least = max(without, key=lambda each: each.kept, default=None)
        if least is None or least.kept < keep:
            break
        best = least
    # One half of the rows calibrated what the other judged; what leaves is calibrated on all of them.
    return replace(best, model=best.model.calibrated(held_out.contexts, held_out.tokens))


def _smallest(every: Sequence[Candidate], keep: float) -> Candidate:
    """Of those that keep enough; the first, which is the whole, where none does."""
    enough = (each for each in every if each.kept >= keep)
    return min(enough, key=lambda each: (each.n_bytes, -each.kept), default=every[0])


@dataclass(frozen=True, eq=False)
class NetworkPath:
    """A model with fewer and fewer features of its network, the cheapest left out first.

    Parameters
    ----------
    model : LanguageModel
    sums : Centered
        Of the network's features.
    order : integer array
        Features in the order in which they leave.
    """

    model: LanguageModel
    sums: Centered
    order: np.ndarray

    @classmethod
    def of(cls, model: LanguageModel, moments: Statistic) -> NetworkPath:
        """Find what each feature costs, when those before it have left."""
        network = network_of(model)
        sums, n = network_sums(moments, network), network.features.n_features
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", IllConditionedWarning)  # of costs, which decide an order and no more
            found = prune(sums, network.solution.alpha, n_features=1, at_once=max(1, n // _STEPS))
        return cls(model, sums, found.order)

    @property
    def n(self) -> int:
        """Features of the whole network."""
        return network_of(self.model).features.n_features

    def at(self, size: int) -> LanguageModel:
        """The model with so many features, solved from their sums; not calibrated anew."""
        network = network_of(self.model)
        kept = np.setdiff1d(np.arange(self.n), self.order[: self.n - size])
        solution = solve(columns(self.sums, kept), network.solution.alpha)
        first, block = network.info.get(KEPT, list(range(self.n))), center_block(network.features)
        info = {**network.info, KEPT: [first[j] for j in kept]}
        if block is not None and "centers" in info:
            stay = set((kept - block[2].start).tolist())
            info["centers"] = [center for j, center in enumerate(info["centers"]) if j in stay]
        features = network.features if size == self.n else network.features.keep(kept.tolist())
        halved = replace(solution, weights=solution.weights.astype(np.float32))
        return replace(self.model, network=LinearModel(features, halved, info))


def _with_experts(model: LanguageModel, experts: Sequence[str]) -> LanguageModel:
    settings = replace(model.settings, experts=tuple(experts))
    n_experts = len(settings.names(model.counts.order))
    needed = {size: ids for size, ids in model.clusters.items() if size in settings.clustered}
    return replace(
        model,
        network=model.network if "network" in experts else None,
        settings=settings,
        clusters=needed,
        mixture=np.full((len(model.mixture), n_experts), 1.0 / n_experts),
    )


def _one_less(experts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All but one. The network's size is what was decided before."""
    for leaving in experts:
        if leaving != "network":
            yield tuple(name for name in experts if name != leaving)


def model_bytes(model: LanguageModel) -> int:
    """Bytes of a model's arrays, as they are saved."""
    total = model.mixture.nbytes + sum(array.nbytes for array in model.counts.packed().values())
    total += sum(ids.nbytes for ids in model.clusters.values())
    for part in (model.network, model.topic, model.cache):
        if part is not None:
            total += sum(array.nbytes for array in part.to_parts()[1].values())
    return int(total)


def with_prompts(moments: Moments, prompts: Moments, share: float) -> Moments:
    """Sums of a corpus and of prompts, in which prompts have a share of the weight: what they use costs more to lose.

    Parameters
    ----------
    moments, prompts : Moments
        Of the same features.
    share : float
        Of the weight, at least 0 and below 1; the total stays that of the corpus, so that alpha keeps its meaning.

    Raises
    ------
    ConfigError
        If the share is out of range, or there are no prompts.
    """
    if not 0 <= share < 1 or not prompts.n_rows:
        msg = f"a share of {share} for {prompts.n_rows} rows of prompts"
        raise ConfigError(msg, "a share of at least 0 and below 1, and some prompts")
    weight = as_centered(moments).weight
    factor = share * weight / prompts.total_weight
    return moments * (1.0 - share) + prompts * factor


def spread(n: int, wanted: int) -> np.ndarray:
    """Rows of stretches of neighbours, evenly spread over n: ascending, about as many as are wanted at most.

    Examples
    --------
    >>> len(spread(10_000, 2560)), spread(300, 1000).tolist() == list(range(300))
    (2560, True)
    """
    if wanted >= n:
        return np.arange(n)
    n_stretches = max(2, wanted // _TURN)
    starts = np.linspace(0, max(0, n - _TURN), n_stretches).astype(np.int64)
    return np.unique((starts[:, None] + np.arange(min(n, _TURN))).ravel())


def halves(contexts: np.ndarray, tokens: np.ndarray) -> HeldOut:
    """Held-out rows cut in two, by turns of neighbours, so that both halves are of all documents."""
    return HeldOut(contexts, tokens, (np.arange(len(tokens)) // _TURN) % 2 == 1)
