"""The closed-form language model on WikiText-2, word level, official split, beside its parts and its peers.

    python pipelines/compare_lm.py --data DIR [--run DIR] [--every 0] [--peers-times 1,10]
                                   [--peers lstm adaptive transformer] [--fractions 0.1,0.3] [--additions 10]
                                   [--resume]

DIR holds train.txt, valid.txt and test.txt (or .txt.gz) of WikiText-2: one paragraph a line; lines end in `<eos>`,
empty ones are skipped, and each file is one stream (see `streamfit.text.tokenizer`, kind "words"). Perplexity is over
all tokens, `<unk>` and line ends included, normalised over the whole vocabulary of 33,278.

Every choice is made on validation text; the test text is scored once, at the end. The closed form's own validation
figures are cross-fitted: each half of that text is scored by weights and a topic chosen on the other half. Static:
parameters are those of the training text, and a prediction sees the tokens before it in its stream (four for the
experts, 256 for the topic), as a recurrent net carries its state. Adaptive: what was scored becomes new data. Peers
are trained in one thread for as many CPU-seconds as the closed form took, times the numbers of `--peers-times`; they
need the extra `bench`. The text is also added a tenth at a time (see `lm_additions.py`). Writes compare_lm.json,
compare_lm.md and compare_lm.svg into the run's folder.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `python pipelines/...`

from pipelines.lm_additions import Additions, additions
from pipelines.lm_additions import lines as told
from pipelines.wikitext import ALPHA, EXPERTS, PARTS, SETTINGS, lay_out
from streamfit.cli import exits
from streamfit.corpus import Files, TextFiles
from streamfit.engine import accumulate
from streamfit.errors import ConfigError, SolveError
from streamfit.solve import solve
from streamfit.store import Store
from streamfit.text import (
    Adaptive,
    LanguageModel,
    Tokenizer,
    assemble,
    prepare,
    token_source,
)
from streamfit.text.contexts import Windows
from streamfit.text.mixture import buckets, fit_buckets, n_buckets

TOKENS = "tokens.npz"
NAMES = {"lstm": "LSTM", "adaptive": "LSTM with adaptive softmax", "transformer": "transformer with adaptive softmax"}


@dataclass
class Clock:
    """CPU-seconds of this process, stage by stage."""

    started: float = field(default_factory=time.process_time)
    stages: dict[str, float] = field(default_factory=dict)

    def lap(self, name: str, console: Console) -> None:
        """End a stage."""
        now = time.process_time()
        self.stages[name] = now - self.started
        self.started = now
        console.print(f"{name}: {self.stages[name]:.1f} CPU-s")


def documents(folder: Path) -> TextFiles:
    """Files of a folder, a document each."""
    return TextFiles(Files(str(folder)))


def fit_model(
    run: Path, train: Path, valid: Path, n_rows: int, console: Console, tokenizer: str = "words"
) -> tuple[LanguageModel, Clock]:
    """From text to a model: one pass, one solve, and choices on validation text.

    A part of the training text takes the `tokenizer` of all of it: figures of other vocabularies do not compare.
    """
    clock = Clock()
    header = prepare(documents(train), replace(SETTINGS, tokenizer=tokenizer))
    clock.lap("tokenizer and topic's embedding", console)
    shutil.rmtree(run / "store", ignore_errors=True)
    store = Store.create(run / "store", header)
    accumulate(store, token_source(header, documents(train)))
    clock.lap("counts and moments", console)
    solution = solve(store.moments(), ALPHA)
    model = assemble(store, solution, documents(valid), experts=EXPERTS, n_rows=n_rows)
    clock.lap("solve, experts, choices", console)
    return model, clock


def likelihoods(model: LanguageModel, windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each token by each expert, and the bucket of its context."""
    parts, found = [], []
    for rows, contexts in windows.batches(65_536):
        near = contexts[:, -(model.counts.order - 1) :]
        own = [expert.probability(near, windows.tokens[rows]) for expert in model.count_experts.values()]
        parts.append(np.column_stack(own))
        found.append(buckets(*model.support(near)))
    return np.concatenate(parts), np.concatenate(found)


def perplexity(p: np.ndarray) -> float:
    """Exp of the mean of -log p."""
    return float(np.exp(-np.log(p).mean()))


def halves(p: np.ndarray, bucket: np.ndarray, order: int) -> float:
    """Perplexity of a mixture whose weights come of the other half of the same text, tenths in turn."""
    half = np.arange(len(p)) * 10 // len(p) % 2
    mixed = np.empty(len(p))
    for side in (0, 1):
        weights = fit_buckets(p[half == side], bucket[half == side], n_buckets(order)).weights
        mixed[half != side] = (p[half != side] * weights[bucket[half != side]]).sum(axis=1)
    return perplexity(mixed)


def ablation(model: LanguageModel, valid: Windows) -> dict[str, float]:
    """Validation perplexity of the mixture with each expert off, before the topic."""
    p, bucket = likelihoods(model, valid)
    every, order = range(p.shape[1]), model.counts.order
    found = {"all experts": halves(p, bucket, order)}
    for off, name in enumerate(model.count_experts):
        found[f"without {name}"] = halves(p[:, [i for i in every if i != off]], bucket, order)
    return found


def score_test(model: LanguageModel, windows: Windows, text: str, every: int) -> dict[str, dict[str, float]]:
    """Every row of the table, in one reading of the test text and one more where counts adapt too."""
    p, bucket = likelihoods(model, windows)
    table: dict[str, dict[str, float]] = {"unigram": {"perplexity": perplexity(model.unigram[windows.tokens])}}
    for column, name in enumerate(model.count_experts):
        table[name] = {"perplexity": perplexity(p[:, column])}
    table["mixture without topic"] = {"perplexity": perplexity((p * model.mixture[bucket]).sum(axis=1))}
    for pace in (0, every) if every else (0,):
        for name, found in Adaptive(model, pace).documents([text]).items():
            table[name] = {key: found.to_json()[key] for key in ("perplexity", "top1", "top5")}
    return table


def crossed(model: LanguageModel, windows: Windows, n_rows: int = 20_000, n_chosen: int = 220_000) -> float:
    """Perplexity on rows of a text, evenly spread, each by weights and a topic chosen on the other half of that text.

    Parameters
    ----------
    n_rows : int
        Rows that are scored.
    n_chosen : int
        Rows that choices are made on, at most, both halves together.
    """
    middle, scored = len(windows) // 2, []
    halves_of = (0, middle), (middle, len(windows))
    for (lo, hi), other in zip(halves_of, reversed(halves_of), strict=True):
        rows = np.linspace(other[0], other[1] - 1, min(n_chosen // 2, other[1] - other[0])).astype(int)
        chosen = model.calibrated(windows[rows], windows.tokens[rows])
        rows = np.linspace(lo, hi - 1, min(n_rows // 2, hi - lo)).astype(int)
        scored += [
            chosen.distribution(windows[part])[np.arange(len(part)), windows.tokens[part]]
            for part in np.array_split(rows, -(-len(rows) // model.batch_rows))
        ]
    return perplexity(np.concatenate(scored))


def point(model: LanguageModel, clock: Clock, valid: Windows, share: float, n_rows: int) -> dict[str, Any]:
    """One point of the closed form's curves."""
    flops = sum(closed_form_flops(model, n_rows).values())
    seconds, found = sum(clock.stages.values()), crossed(model, valid, n_chosen=n_rows)
    return {"cpu_seconds": seconds, "flops": flops, "valid": found, "share": share, "crossed": True}


def closed_form_flops(model: LanguageModel, n_rows: int) -> dict[str, float]:
    """Floating-point operations of a fit, at most and to leading order, from the shapes that it worked on.

    Counting, sorting and looking up n-grams are integer work and in none of it: they take most of the CPU-seconds.
    """
    v, settings, n_train = model.vocab_size, model.settings, int(model.counts.counts.sum())
    d, width = (model.topic.features.n_features, model.topic.features.n_inputs) if model.topic is not None else (0, 0)
    near = len(model.counts.lower(2).grams)
    far = 2.0 * 24 * min(n_train, 4_000_000)  # pairs at 24 distances, both ways; fewer, as many are the same
    topic_rows = min(n_rows, 2**27 // v)
    sketch = 2 * 10  # of the ten products of a randomised decomposition, for each entry and column
    return {
        "moments": float(n_train) * (2 * d * width + d * (d + 1) + d),
        "embeddings": sketch * ((d + 16) * far + (settings.class_dims + 16) * near),
        "clusters": 15.0 * 2 * settings.class_dims * v * sum(settings.clustered),
        "solves": 4 * (d**3 / 3 + 2.0 * d * d * v),
        "choices": 4.0 * topic_rows * v * (2 * d + 10 * 10) + 100.0 * 4 * n_rows * len(model.count_experts),
    }


def peers(run: Path, kinds: list[str], seconds: float, factor: float, console: Console) -> list[dict[str, Any]]:
    """Train peers side by side, each in a process of one thread, whose threads sleep where they wait."""
    quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    found, running, here = [], {}, Path(__file__).with_name("lm_peers.py")
    for kind in kinds:
        result = run / f"{kind}_{factor:g}.json"
        asked = {"kind": kind, "times": factor, "cpu_seconds": seconds * factor, "tokens": str(run / TOKENS)}
        asked |= {"width": 256, "vocab_size": SETTINGS.vocab_size, "result": str(result)}
        command = [sys.executable, str(here), json.dumps(asked)]
        running[kind] = subprocess.Popen(command, env={**os.environ, **quiet}), result
    for kind, (process, result) in running.items():
        if process.wait():
            msg = f"the {kind} peer ended with exit code {process.returncode}"
            raise SolveError(msg, "a trained network", "install the extra `bench`, or give --peers-times ''")
        found.append(json.loads(result.read_text()))
        console.print(f"{kind}, {found[-1]['cpu_seconds']:.0f} CPU-s: test {found[-1]['test']:.1f}")
    return found


def draw(report: dict[str, Any], path: Path) -> None:
    """Validation perplexity against CPU-seconds, and against floating-point operations."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(9.6, 4.6), sharey=True, layout="constrained")
    for axes, key in zip(both, ("cpu_seconds", "flops"), strict=True):
        curve = report["closed_form_curve"]
        axes.plot([c[key] for c in curve], [c["valid"] for c in curve], "o-", label="closed form, static")
        for peer in report["peers"]:
            label = f"{NAMES[peer['kind']]}, {peer['cpu_seconds']:.0f} CPU-s"
            axes.plot([c[key] for c in peer["curve"]], [c["valid"] for c in peer["curve"]], "s--", label=label)
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    both[0].set(xlabel="CPU-seconds, one thread", ylabel="validation perplexity")
    both[1].set(xlabel="floating-point operations")
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def markdown(report: dict[str, Any]) -> str:
    """The tables as a page."""
    lines = ["| WikiText-2 test | perplexity | top-1 |", "|---|---|---|"]
    for name, row in report["test"].items():
        top1 = f"{row['top1']:.2%}" if "top1" in row else ""
        lines.append(f"| {name} | {row['perplexity']:.1f} | {top1} |")
    for peer in report["peers"]:
        name = f"{NAMES[peer['kind']]}, {peer['times']:g} x the CPU-seconds"
        lines.append(f"| {name} | {peer['test']:.1f} | {peer['top1']:.2%} |")
    lines += ["", "| validation | CPU-s | GFLOP | perplexity |", "|---|---|---|---|"]
    for at in report["closed_form_curve"]:
        name = f"closed form, {at['share']:g} of the text"
        if at.get("crossed"):  # runs of earlier releases, which `--resume` may take up, scored what they had chosen on
            name += ", each half scored by the other's weights and topic"
        lines.append(f"| {name} | {at['cpu_seconds']:.0f} | {at['flops'] / 1e9:,.0f} | {at['valid']:.1f} |")
    for peer in report["peers"]:
        for at in peer["curve"]:
            name = f"{NAMES[peer['kind']]}, of {peer['cpu_seconds']:.0f} CPU-s"
            lines.append(f"| {name} | {at['cpu_seconds']:.0f} | {at['flops'] / 1e9:,.0f} | {at['valid']:.1f} |")
    lines += ["", "| experts, validation, before the topic | perplexity |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in report["ablation"].items()]
    if "additions" in report:
        lines += ["", *(f"{line}  " for line in told(Additions(**report["additions"])))]
    lines += ["", "| stage | CPU-s |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in report["cpu_seconds"].items()]
    lines += ["", "| floating-point work | GFLOP |", "|---|---|"]
    lines += [f"| closed form, {name} | {value / 1e9:,.0f} |" for name, value in report["flops"].items()]
    for peer in report["peers"]:
        lines.append(f"| {NAMES[peer['kind']]}, {peer['cpu_seconds']:.0f} CPU-s | {peer['flops'] / 1e9:,.0f} |")
    return "\n".join([*lines, ""])


def closed_form(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Fit on parts of the text and on all of it, choose on validation, score the test once."""
    run = Path(arguments.run)
    folders = lay_out(Path(arguments.data), run)
    curve = []
    texts = {part: (folders[part] / f"{part}.txt").read_text(encoding="utf-8") for part in PARTS}
    vocabulary = run / "tokenizer.json"
    vocabulary.write_text(Tokenizer.train([texts["train"]], SETTINGS.vocab_size, "words").serialized, encoding="utf-8")
    for share in arguments.fractions:
        lines = texts["train"].splitlines(keepends=True)
        part = run / "text" / f"train_{share:g}"
        part.mkdir(exist_ok=True)
        (part / "train.txt").write_text("".join(lines[: int(share * len(lines))]), encoding="utf-8")
        model, clock = fit_model(run, part, folders["valid"], arguments.rows, console, str(vocabulary))
        windows = Windows(model.tokenizer.encode([texts["valid"]]), model.n_context)
        curve.append(point(model, clock, windows, share, arguments.rows))
    model, clock = fit_model(run, folders["train"], folders["valid"], arguments.rows, console)
    model.save(run / "model")
    valid, test = (Windows(model.tokenizer.encode([texts[part]]), model.n_context) for part in ("valid", "test"))
    curve.append(point(model, clock, valid, 1.0, arguments.rows))
    console.print(f"validation, cross-fitted: {curve[-1]['valid']:.1f}")
    report: dict[str, Any] = {"cpu_seconds": clock.stages, "closed_form_curve": curve, "peers": []}
    report["flops"] = closed_form_flops(model, arguments.rows)
    report["ablation"] = ablation(model, valid)
    report["test"] = score_test(model, test, texts["test"], arguments.every)
    if arguments.additions:
        found = additions(
            texts["train"], folders["valid"], run / "additions", SETTINGS, EXPERTS, ALPHA, n=arguments.additions
        )
        report["additions"] = asdict(found)
    train, valid_ids, test_ids = model.tokenizer.encode([texts[part] for part in PARTS])
    np.savez(run / TOKENS, train=train, valid=valid_ids, test=test_ids)
    write(report, run)
    console.print(markdown(report))
    return report


def write(report: dict[str, Any], run: Path) -> None:
    """Everything into the run's folder."""
    (run / "compare_lm.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (run / "compare_lm.md").write_text(markdown(report), encoding="utf-8")
    draw(report, run / "compare_lm.svg")


def main(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fit, choose, score, compare."""
    console, run = Console(), Path(arguments.run)
    if arguments.peers_times and importlib.util.find_spec("torch") is None:
        msg = "peers without torch"
        raise ConfigError(msg, "the extra `bench`", "or give --peers-times ''")
    there = run / "compare_lm.json"
    report = json.loads(there.read_text()) if arguments.resume and there.is_file() else closed_form(arguments, console)
    seconds = sum(report["cpu_seconds"].values())
    for factor in arguments.peers_times:
        known = {(peer["kind"], peer["times"]) for peer in report["peers"]}
        kinds = [kind for kind in arguments.peers if (kind, factor) not in known]
        report["peers"] += peers(run, kinds, seconds, factor, console)
        write(report, run)
    write(report, run)
    console.print(markdown(report))
    return dict(report)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""

    def numbers(text: str) -> list[float]:
        return [float(each) for each in text.split(",") if each]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train.txt, valid.txt, test.txt")
    parser.add_argument("--run", default="runs/compare_lm")
    parser.add_argument("--every", type=int, default=0, help="tokens between solves of adaptive scores; 0: cache alone")
    parser.add_argument("--rows", type=int, default=220_000, help="validation rows that weights are chosen on")
    parser.add_argument("--peers-times", type=numbers, default=[1.0, 10.0], help="'' for none")
    parser.add_argument("--peers", nargs="+", choices=[*NAMES], default=[*NAMES])
    parser.add_argument("--fractions", type=numbers, default=[0.1, 0.3], help="of the training text, for the curve")
    parser.add_argument("--additions", type=int, default=10, help="parts that a model takes one by one; 0 for none")
    parser.add_argument("--resume", action="store_true", help="take the closed form, and peers, that the run has")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    with exits():
        main(parsed())
