"""What networks over contexts add to counts on WikiText-2: RBF over four tokens, and topics of several kinds.

    python -m pipelines.network_lm --data DIR --model RUN/model [--run DIR] [--features 1000] [--centers 1000]

RUN is a run of compare_lm.py with its model of counts and a topic. Each network is one pass of the training text into
moments and one solve:

- *near*: Gaussian RBF network whose centers are real contexts of four tokens, beside a ridge on their embeddings;
- *topic, linear*: the model's own, ridge on the decayed sum of the embeddings of 256 tokens, decay 0.99;
- *topic, decays*: the same on such sums of four decays, half-lives of 3 to 231 tokens, side by side;
- *topic, Fourier*: random Fourier features of the sum of decay 0.99, and of all four.

Alone, a network's outputs are made probabilities as the model makes them. Beside counts, each is one more expert of the
mixture; and topics multiply it. Weights and powers are chosen on every other one of some validation rows, and what is
chosen among is compared on the rest; the test text is scored once by what did best, and by the model with its own
topic. Writes network_lm.json and network_lm.md into the run's folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from threadpoolctl import threadpool_limits

from pipelines.compare_lm import perplexity
from pipelines.wikitext import PARTS, lay_out
from streamfit.cli import exits
from streamfit.errors import ConfigError, SolveError
from streamfit.features import Chain, Concat, FeatureMap
from streamfit.features.windows import Decayed, Nearest
from streamfit.frame import BLOCK_ROWS, Frame
from streamfit.models import LinearModel
from streamfit.moments import MomentsAccumulator
from streamfit.solve import solve
from streamfit.targets import OneHot
from streamfit.text import LanguageModel
from streamfit.text.contexts import Windows
from streamfit.text.embeddings import context_embeddings, context_features, sample_rows
from streamfit.text.topic import DECAYS, FOURIER_ROWS, Topic, fourier_map, with_decay

ALPHA = 1e3
_SAMPLE = 16_384


@dataclass(frozen=True)
class Scored:
    """Perplexity and top-1 of some rows, and CPU-seconds that the network's sums took."""

    name: str
    perplexity: float
    top1: float
    cpu_seconds: float
    n_features: int


def summed(features: FeatureMap, windows: Windows, vocab_size: int) -> Any:
    """Centred moments of a map's features and the one-hot next tokens of a text, one pass on one thread."""
    targets, sample = OneHot(vocab_size), sample_rows(len(windows), _SAMPLE, 0)
    frame = Frame.from_sample(features(windows[sample]), windows.tokens[sample], targets, features.bounds)
    sums = MomentsAccumulator(frame, targets, "float32", overwrite=True)
    for lo in range(0, len(windows), BLOCK_ROWS):
        rows = np.arange(lo, min(lo + BLOCK_ROWS, len(windows)))
        sums.add(features(windows[rows]), windows.tokens[rows])
    return sums.moments().centered()


def scored(model: LanguageModel, windows: Windows, rows: np.ndarray) -> tuple[float, float]:
    """Perplexity and top-1 of some rows under the whole model."""
    found, hits = [], 0
    for part in np.array_split(rows, max(1, -(-len(rows) // model.batch_rows))):
        p = model.distribution(windows[part])
        tokens = windows.tokens[part]
        found.append(p[np.arange(len(part)), tokens])
        hits += int((p.argmax(axis=1) == tokens).sum())
    return perplexity(np.concatenate(found)), hits / len(rows)


def topics(own: Decayed, n: int, sample: np.ndarray) -> Iterator[tuple[str, FeatureMap]]:
    """Maps of what was written lately, by name."""
    every, of_every = Concat(tuple(with_decay(own, decay) for decay in DECAYS)), fourier_map(own, DECAYS, n, sample, 0)
    yield "topic, decays", every
    yield "topic, Fourier", fourier_map(own, (own.decay,), n, sample, 0)
    yield "topic, Fourier of decays", of_every
    yield "topic, decays and Fourier of them", every + of_every


def near(few: Windows, width: int, vocab_size: int, n_centers: int) -> FeatureMap:
    """RBF network over real contexts of a few tokens, the last of a window, beside the embeddings themselves."""
    rows = np.arange(len(few))[:: max(1, len(few) // 1_000_000)]
    contexts, tokens = few[rows], few.tokens[rows]
    embedding = context_embeddings(contexts, tokens, vocab_size, 100, 0)
    some = sample_rows(len(contexts), 30_000, 0)
    network = context_features(embedding, contexts[some], n_centers, linear=True, gamma=None, seed=0)
    return Chain(Nearest(width, contexts.shape[1]), network)


def networked(model: LanguageModel, features: FeatureMap, sums: Any, contexts: np.ndarray, tokens: np.ndarray,
              *, alone: bool) -> LanguageModel:  # fmt: skip
    """A model with a network among its experts, or with nothing else, and without a topic."""
    network = LinearModel(features, solve(sums, ALPHA), {})
    experts = ("network",) if alone else (*model.settings.experts, "network")
    settings = replace(model.settings, experts=experts)
    n = len(settings.names(model.counts.order))
    uniform = np.full((len(model.mixture), n), 1.0 / n)
    made = replace(model, network=network, settings=settings, mixture=uniform, topic=None, cache=None)
    return (made if alone else model.keeping(made)).calibrated(contexts, tokens)


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sum, solve, choose on validation, score the test once."""
    console, run = Console(), Path(arguments.run)
    run.mkdir(parents=True, exist_ok=True)
    model = LanguageModel.load(arguments.model)
    if model.topic is None or not isinstance(model.topic.features, Decayed):
        msg = f"{arguments.model}: a model without a topic"
        raise ConfigError(msg, "a model of compare_lm.py")
    own = model.topic.features
    folders = lay_out(Path(arguments.data), run)
    texts = [(folders[part] / f"{part}.txt").read_text(encoding="utf-8") for part in PARTS]
    encoded = [model.tokenizer.encode([text]) for text in texts]
    train, valid, test = (Windows(ids, model.n_context) for ids in encoded)
    # Choices are made on even rows of a sample, and what is chosen among is compared on odd ones.
    rows = np.linspace(0, len(valid) - 1, 2 * arguments.rows).astype(int)
    chosen, held = rows[::2], rows[1::2]
    contexts, tokens = valid[chosen], valid.tokens[chosen]
    bare = model.keeping(replace(model, topic=None, cache=None)).calibrated(contexts, tokens)
    found, models = [], {}

    def note(name: str, made: LanguageModel, seconds: float, n: int) -> None:
        found.append(Scored(name, *scored(made, valid, held), seconds, n))
        models[name] = made
        console.print(found[-1])

    note("counts", bare, 0.0, 0)
    note("counts, topic linear", bare.about(replace(model.topic, power=0.0), contexts, tokens), 0.0, own.n_features)
    few = Windows(encoded[0], bare.counts.order - 1)
    maps = {"near": near(few, model.n_context, model.vocab_size, arguments.centers)}
    maps |= dict(topics(own, arguments.features, valid[sample_rows(len(valid), FOURIER_ROWS, 0)]))
    for name, features in maps.items():
        started = time.process_time()
        sums = summed(features, train, model.vocab_size)
        seconds = time.process_time() - started
        alone = networked(model, features, sums, contexts, tokens, alone=True)
        note(f"{name}, alone", alone, seconds, features.n_features)
        mixed = networked(model, features, sums, contexts, tokens, alone=False)
        note(f"counts and {name} as an expert", mixed, seconds, features.n_features)
        if name == "near":
            about = mixed.about(replace(model.topic, power=0.0), contexts, tokens)
            note("counts and near as an expert, topic linear", about, seconds, features.n_features)
        else:
            try:
                about = bare.about(Topic(features, sums, ALPHA), contexts, tokens)
            except SolveError as error:
                console.print(f"counts, {name}: {error}")  # its estimates are too flat to be a factor
            else:
                note(f"counts, {name}", about, seconds, features.n_features)
    best = min(found, key=lambda one: one.perplexity).name
    every = np.arange(len(test))
    scores = {name: scored(models[name], test, every) for name in dict.fromkeys(("counts, topic linear", best))}
    report = {"validation": [asdict(one) for one in found], "test": scores}
    (run / "network_lm.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (run / "network_lm.md").write_text(markdown(report), encoding="utf-8")
    console.print(markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """The tables as a page."""
    lines = ["| validation | features | perplexity | top-1 | CPU-s of sums |", "|---|---|---|---|---|"]
    for one in report["validation"]:
        cells = f"{one['perplexity']:.1f} | {one['top1']:.1%} | {one['cpu_seconds']:.0f}"
        lines.append(f"| {one['name']} | {one['n_features']:,} | {cells} |")
    lines += ["", "| test | perplexity | top-1 |", "|---|---|---|"]
    lines += [f"| {name} | {value:.1f} | {top1:.1%} |" for name, (value, top1) in report["test"].items()]
    return "\n".join([*lines, ""])


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train.txt, valid.txt, test.txt")
    parser.add_argument("--model", required=True, help="model of compare_lm.py, or another with a topic")
    parser.add_argument("--run", default="runs/network_lm")
    parser.add_argument("--features", type=int, default=1000, help="random Fourier features")
    parser.add_argument("--centers", type=int, default=1000, help="contexts of the near network")
    parser.add_argument(
        "--rows", type=int, default=4000, help="validation rows to choose on, and as many to compare on"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with exits(), threadpool_limits(1):
        main(parsed())
