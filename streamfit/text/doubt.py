"""Is it making this up? What the corpus has to say of a context, and how sure the model is of what follows.

Floor 6: imports model, contexts, models, solve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.special

from streamfit.centered import Statistic
from streamfit.errors import CorpusError, MismatchError
from streamfit.models import LinearModel, read_model, write_model
from streamfit.solve.inverse import inverse_factor
from streamfit.solve.ridge import without_constants
from streamfit.text.contexts import Windows
from streamfit.text.model import LanguageModel
from streamfit.text.network_sums import network_of, network_sums

FOLDER = "doubt"
"""Folder beside a model's files."""
SIGNALS = ("leverage", "suffix length", "suffix count", "entropy", "confidence")
WINDOW = 64
"""Tokens over which doubt is averaged where text as a whole is judged."""


@dataclass(frozen=True, eq=False)
class Leverage:
    """How little the corpus says of contexts like one: 1/W + φ_c' (G + alpha I)^-1 φ_c, φ_c being centred features.

    The variance of the network's mean output there, in units of the noise; see `streamfit.solve.Posterior.leverage`.
    Near or above 1, nothing like it was in the corpus.

    Parameters
    ----------
    factor : float32 array of shape (n_features, n_features)
        T, with (G + alpha I)^-1 = T'T.
    mean : float64 array of shape (n_features,)
        Of the features over the corpus.
    weight : float
        W, its rows.
    """

    factor: np.ndarray
    mean: np.ndarray
    weight: float

    @classmethod
    def of(cls, moments: Statistic, network: LinearModel) -> Leverage:
        """From the sums that a network was solved from.

        Raises
        ------
        SolveError
            If the system is singular.
        MismatchError
            If the solution has a penalty for each block of features.
        """
        if network.solution.block_alphas is not None:
            msg = "leverages of a solution with an alpha for each block"
            raise MismatchError(msg, "one alpha", "solve without `blocks`")
        c = without_constants(network_sums(moments, network))
        return cls(inverse_factor(c.gram, network.solution.alpha).astype(np.float32), c.mean_x, float(c.weight))

    def __call__(self, phi: np.ndarray) -> np.ndarray:
        """Leverages of rows of features: float64 of shape (n_rows,).

        Parameters
        ----------
        phi : array of shape (n_rows, n_features)
        """
        z = (phi - self.mean).astype(np.float32) @ self.factor.T
        return np.asarray(np.einsum("nd,nd->n", z, z, dtype=np.float64) + 1.0 / self.weight)


@dataclass(frozen=True, eq=False)
class Signals:
    """What there is to doubt each prediction of some text by.

    Parameters
    ----------
    tokens : int array of shape (n,)
        What came; the end of each document among them.
    leverage : array of shape (n,)
    length, seen : int arrays of shape (n,)
        Tokens of the longest suffix of the context that was a context in training, and how often it was.
    entropy : array of shape (n,)
        Of the mixture, nats.
    confidence : array of shape (n,)
        Probability of the most probable token.
    surprise : array of shape (n,)
        -log p of what came, nats.
    right : bool array of shape (n,)
        Whether that was the most probable token.
    """

    tokens: np.ndarray
    leverage: np.ndarray
    length: np.ndarray
    seen: np.ndarray
    entropy: np.ndarray
    confidence: np.ndarray
    surprise: np.ndarray
    right: np.ndarray

    def columns(self) -> np.ndarray:
        """What a judgement is made of, as `SIGNALS` names it; each is the larger, the more there is to doubt."""
        return np.column_stack(
            [np.log(self.leverage), -self.length, -np.log1p(self.seen), self.entropy, -np.log(self.confidence)]
        )


@dataclass(frozen=True, eq=False)
class Doubt:
    """Signals weighed on held-out text of the model's own kind; no other text has a say.

    The doubt of a token is the mean of its five signals, each less its mean and over its deviation on the held-out
    text. Averaged over `WINDOW` tokens it tells text of another kind; how much of the held-out text is doubted less is
    kept as quantiles. The chance that the most probable token is not what comes is a logistic regression on the same
    signals.

    Parameters
    ----------
    leverage : Leverage
    mean, scale : arrays of shape (5,)
        Of the signals.
    slopes : array of shape (5,)
        Of the logistic regression, on standardised signals.
    intercept : float
    quantiles : array of shape (101,)
        Of the mean doubt of windows.
    store : str
        Commit of the sums, by which a model and its doubt know each other.
    """

    leverage: Leverage
    mean: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray
    intercept: float
    quantiles: np.ndarray
    store: str

    @classmethod
    def fit(cls, model: LanguageModel, moments: Statistic, texts: Sequence[str], *, n_tokens: int = 20_000) -> Doubt:
        """Learn what signals are usual.

        Parameters
        ----------
        model : LanguageModel
        moments : Moments
            The sums that its network was solved from.
        texts : sequence of str
            Held-out text, of which the first tokens of each document are used.
        n_tokens : int

        Raises
        ------
        CorpusError
            If there is less than a window of text, or the model is always right or always wrong there.
        """
        from sklearn.linear_model import LogisticRegression  # takes long, and only this needs it

        leverage = Leverage.of(moments, network_of(model))
        seen = signals(model, leverage, _first(model, texts, n_tokens))
        if len(seen.tokens) < WINDOW or seen.right.all() or not seen.right.any():
            msg = f"{len(seen.tokens)} tokens of held-out text, {int(seen.right.sum())} of them predicted"
            raise CorpusError(msg, f"{WINDOW} or more, some of them predicted", "give more held-out text")
        columns = seen.columns()
        mean, scale = columns.mean(axis=0), np.maximum(columns.std(axis=0), 1e-9)
        standard = (columns - mean) / scale
        judged = LogisticRegression().fit(standard, ~seen.right)
        quantiles = np.quantile(windows(standard.mean(axis=1), WINDOW), np.linspace(0, 1, 101))
        store = str(network_of(model).info.get("store"))
        return cls(leverage, mean, scale, judged.coef_[0], float(judged.intercept_[0]), quantiles, store)

    def signals(self, model: LanguageModel, texts: Sequence[str]) -> Signals:
        """Signals of every token of some documents."""
        return signals(model, self.leverage, texts)

    def score(self, seen: Signals) -> np.ndarray:
        """Doubt of each token, 0 on the average of held-out text; shape (n,)."""
        return np.asarray(((seen.columns() - self.mean) / self.scale).mean(axis=1))

    def error(self, seen: Signals) -> np.ndarray:
        """Chance that the most probable token is not what comes; shape (n,)."""
        z = ((seen.columns() - self.mean) / self.scale) @ self.slopes + self.intercept
        return np.asarray(scipy.special.expit(z))

    def unlike(self, seen: Signals) -> float | None:
        """Share of held-out windows that are doubted less than this text is: near 1, it is of another kind.

        None of fewer tokens than a window has: the mean of few is far off in text of the same kind, too.
        """
        if len(seen.tokens) < WINDOW:
            return None
        return float(np.interp(self.score(seen).mean(), self.quantiles, np.linspace(0, 1, 101)))

    def save(self, model: str | Path) -> None:
        """Write it into a model's folder."""
        described = {"weight": self.leverage.weight, "store": self.store, "intercept": self.intercept}
        arrays = {name: getattr(self, name) for name in ("mean", "scale", "slopes", "quantiles")}
        arrays |= {"factor": self.leverage.factor, "features": self.leverage.mean}
        write_model(Path(model) / FOLDER, "doubt", described, arrays)

    @classmethod
    def load(cls, folder: str | Path, model: LanguageModel) -> Doubt | None:
        """Read it from a model's folder; None where there is none, or one of another solve.

        Raises
        ------
        StoreError
            If it is damaged.
        """
        if not (Path(folder) / FOLDER / "model.json").is_file():
            return None
        spec, arrays = read_model(Path(folder) / FOLDER, "doubt")
        leverage = Leverage(arrays.pop("factor"), arrays.pop("features"), spec["weight"])
        found = cls(leverage, intercept=spec["intercept"], store=spec["store"], **arrays)
        network = network_of(model)
        same = found.store == str(network.info.get("store"))
        return found if same and len(leverage.mean) == len(network.solution.weights) else None


def _first(model: LanguageModel, texts: Sequence[str], n_tokens: int) -> list[str]:
    """Beginnings of all documents, about as many tokens of each, so that no single one decides what is usual."""
    each = max(WINDOW, -(-n_tokens // max(1, len(texts))))
    kept: list[str] = []
    for text in texts:
        if n_tokens <= 0:
            break
        ids = model.tokenizer.encode([text])[0]
        room = min(each, n_tokens)
        kept.append(text if len(ids) <= room else model.tokenizer.decode(ids[:room]))
        n_tokens -= min(len(ids), room) + 1
    return kept


def windows(values: np.ndarray, size: int) -> np.ndarray:
    """Means of stretches of tokens, what is left at the end aside."""
    n = len(values) // size
    return np.asarray(values[: n * size].reshape(n, size, *values.shape[1:]).mean(axis=1))


def signals(model: LanguageModel, leverage: Leverage, texts: Sequence[str]) -> Signals:
    """Signals of every token of some documents.

    Parameters
    ----------
    model : LanguageModel
    leverage : Leverage
    texts : sequence of str
    """
    contexts = Windows(model.tokenizer.encode(texts), model.n_context)
    tokens, n = contexts.tokens, len(contexts)
    network = network_of(model)
    length, seen = np.empty(n, np.int64), np.empty(n, np.int64)
    leverages, entropy, confidence, surprise = (np.empty(n) for _ in range(4))
    right = np.empty(n, np.bool_)
    for rows, batch in contexts.batches(model.batch_rows):
        leverages[rows] = leverage(network.features(batch))
        length[rows], seen[rows] = model.support(batch)
        p = model.distribution(batch)
        own = p[np.arange(len(p)), tokens[rows]]
        entropy[rows] = -np.einsum("nv,nv->n", p, np.log(p), dtype=np.float64)
        confidence[rows], surprise[rows] = p.max(axis=1), -np.log(own)
        right[rows] = p.argmax(axis=1) == tokens[rows]
    return Signals(tokens, leverages, length, seen, entropy, confidence, surprise, right)
