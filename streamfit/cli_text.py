"""Commands that use a language model: generate, explain, doubt, distill, related. Floor 7."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from streamfit.cli_options import AtOption, JsonOption, dump, own_folder
from streamfit.config import LanguageProblem, load_problem
from streamfit.corpus import Documents, Files, JsonLines, Placed, TextFiles
from streamfit.corpus.table_text import TableText
from streamfit.corpus.tar import TarText
from streamfit.engine import say
from streamfit.errors import ConfigError, ShardError
from streamfit.model_runs import ModelRun, doubt_of
from streamfit.report.plots import plot_sizes
from streamfit.rows import kind_told
from streamfit.text import LanguageModel, Sampling, explain_page, find_origins, generate_text, origins_of
from streamfit.text import explain as explain_token
from streamfit.text.distill import Candidate, with_prompts
from streamfit.text.distill import distill as distil_model
from streamfit.text.doubt import WINDOW
from streamfit.text.related import Neighbour, Related
from streamfit.text.tokenizer import DOCUMENT

app = typer.Typer()

ModelArgument = Annotated[Path, typer.Argument(help="Folder of a language model.")]
RunOption = Annotated[
    Path | None, typer.Option("--run", help="Folder of its run; the folder above it without.", show_default=False)
]
PromptArgument = Annotated[
    str | None, typer.Argument(help="Text; '-' or nothing reads standard input.", show_default=False)
]


@app.command(epilog="Example: streamfit generate runs/demo/model 'def read(' --stop '\\n\\n' --temperature 0.7")
def generate(
    model: ModelArgument,
    prompt: PromptArgument = None,
    tokens: Annotated[int, typer.Option(help="At most so many tokens.", min=0)] = 100,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token each time.", min=0)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many of the most probable tokens; 0: all.", min=0)] = 0,
    top_p: Annotated[float, typer.Option(help="Share of probability to draw from.", min=0, max=1)] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.", min=0)] = 0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; \\n and \\t are understood; repeatable.")
    ] = None,
    expert: Annotated[
        str, typer.Option(help="One of the model's experts alone, such as network or ngram.")
    ] = "mixture",
    echo: Annotated[bool, typer.Option(help="Write the prompt first.")] = True,
) -> None:
    """Continue a text with a language model; it is written as it is made."""
    language = LanguageModel.load(model)
    text = read_prompt(prompt)
    sampling = Sampling(tokens, temperature, top_k, top_p, seed)
    ends = [each.replace("\\n", "\n").replace("\\t", "\t") for each in stop or []]
    pieces = generate_text(language, text, sampling, stop=ends, expert=expert)
    with piped():
        if echo:
            _write(text)
        for piece in pieces:
            _write(piece)
        _write("\n")


@app.command(epilog="Example: streamfit explain runs/demo/model 'import ' --token os --html why.html")
def explain(
    model: ModelArgument,
    prompt: PromptArgument = None,
    token: Annotated[
        str | None, typer.Option(help="Text of the token to explain; the most probable without.", show_default=False)
    ] = None,
    top: Annotated[int, typer.Option(help="Centers that are shown one by one.", min=0)] = 8,
    corpus: Annotated[
        str | None,
        typer.Option(help="Files, or a run's folder, in which to look for centers' places.", show_default=False),
    ] = None,
    field: Annotated[str, typer.Option(help="Field of the text, for a corpus of .jsonl files.")] = "text",
    page: Annotated[Path | None, typer.Option("--html", help="Write a page as well.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which contexts and suffixes of the corpus carried a prediction; their shares add up to the probability.

    A place such as json/tool.py:812 is a file and an offset in it: bytes of UTF-8 from the start to where the center's
    context ends. A number between the two is that of a line of JSON lines or a row of a table, from 0, and bytes are
    from the start of its text. A space at the end of the prompt is the beginning of the token, as in training text.
    """
    language = LanguageModel.load(model)
    network = language.network
    origins = [] if network is None else origins_of(network.info)
    if corpus is not None and network is not None:
        there = find_origins(network.features, language.tokenizer, _readable(corpus, field))
        known = origins if len(origins) == len(there) else [None] * len(there)  # older models keep no places
        origins = [o or (k and replace(k, file="")) for o, k in zip(there, known, strict=True)]
    found = explain_token(language, read_prompt(prompt), token, origins=origins)
    if token is not None and found.token.strip() != token.strip():
        told = f"{token!r} is no single token of the model's: {found.token!r}, with which it begins, is explained"
        say(Console(stderr=True), told, "yellow")
    if page is not None:
        write_file(page, explain_page.page([found], top))
    if as_json:
        dump(found.to_json(top))
        return
    for line in explain_page.lines(found, top):
        typer.echo(line)
    if page is not None:
        typer.echo(f"page: {page}")


@app.command(epilog="Example: streamfit doubt runs/demo/model - < notes.txt")
def doubt(
    model: ModelArgument,
    text: PromptArgument = None,
    top: Annotated[int, typer.Option(help="So many of the tokens that are doubted most.", min=0)] = 20,
    run: RunOption = None,
    at: AtOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say of each token of a text how much there is to doubt the model there, and whether it is text of another kind.

    Doubt is the mean of leverage, shortness and rarity of the suffix that was seen, entropy and lack of confidence,
    each in deviations from what is usual on held-out text. What that is, and the leverages, are made once from the
    model's run, and kept beside it.
    """
    language, judge = doubt_of(model, run, at)
    seen = judge.signals(language, [read_prompt(text)])
    score, error = judge.score(seen), judge.error(seen)
    rows = [
        {
            "at": int(i),
            "token": language.tokenizer.decode([int(seen.tokens[i])]) if seen.tokens[i] else DOCUMENT,
            "probability": float(np.exp(-seen.surprise[i])),
            "doubt": float(score[i]),
            "error": float(error[i]),
            "leverage": float(seen.leverage[i]),
            "suffix_length": int(seen.length[i]),
            "suffix_count": int(seen.seen[i]),
            "entropy": float(seen.entropy[i]),
        }
        for i in range(len(score))
    ]
    if as_json:
        dump({"doubt": float(score.mean()), "unlike": judge.unlike(seen), "tokens": rows})
        return
    table = Table(title=f"the {min(top, len(rows))} tokens of {len(rows):,} that are doubted most, in order")
    columns = ("at", "token", "probability", "doubt", "chance of error", "leverage", "suffix", "seen", "entropy")
    for column in columns:
        table.add_column(column, justify="left" if column == "token" else "right")
    for i in sorted(np.argsort(-score, kind="stable")[:top].tolist()):
        row = rows[i]
        table.add_row(
            f"{i:,}", escape(repr(row["token"])), f"{row['probability']:.3%}", f"{row['doubt']:+.2f}",
            f"{row['error']:.1%}", f"{row['leverage']:.1e}", str(row["suffix_length"]), f"{row['suffix_count']:,}",
            f"{row['entropy']:.2f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    unlike = judge.unlike(seen)
    told = f"held-out text is doubted less in {unlike:.0%} of windows of {WINDOW} tokens" if unlike is not None else (
        f"{len(rows)} tokens are too few to say whether it is text of another kind: {WINDOW} or more")  # fmt: skip
    say(console, f"doubt {score.mean():+.3f} on average; {told}", "bold")


@app.command(epilog="Example: streamfit distill runs/demo/model --keep 0.99 -o small --prompts typical.txt")
def distill(
    model: ModelArgument,
    keep: Annotated[
        float, typer.Option(help="Least share: perplexity may rise to that of the whole over it.", min=0, max=1)
    ] = 0.999,
    prompts: Annotated[
        str | None, typer.Option(help="Text like what the model will be given.", show_default=False)
    ] = None,
    prompt_share: Annotated[float, typer.Option(help="Weight of prompts beside the corpus.", min=0, max=1)] = 0.5,
    rows: Annotated[int, typer.Option(help="Held-out tokens to calibrate and judge by.", min=1024)] = 20_000,
    run: RunOption = None,
    at: AtOption = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Folder for the small model.", callback=own_folder, show_default=False),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Figure of size against perplexity (.svg, .png).", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Leave out features of the network and experts, what costs least first, as far as held-out perplexity allows.

    Costs are exact, from the sums of the model's run; with --prompts, text like what is to come weighs in, so that what
    it does not use is cheap to lose. Each size is solved and calibrated anew on one half of the held-out text, and
    judged on the other.
    """
    progress = Console(stderr=True, quiet=as_json)
    opened = ModelRun.open(model, run, at)
    sums, held_out = opened.moments(), opened.held_out_rows(rows)
    if prompts is not None:
        sums = with_prompts(sums, opened.count(each.text for each in _readable(prompts, "text")), prompt_share)
    tried: list[Candidate] = []

    def judged(found: Candidate) -> None:
        tried.append(found)
        size = f"{found.n_features:,} features, {len(found.model.experts)} experts, {found.n_bytes / 1e6:,.1f} MB"
        say(progress, f"{len(tried)}: {size}: perplexity {found.perplexity:,.3f}, {found.kept:.2%} kept", "dim")

    say(progress, f"each size is calibrated and judged on {len(held_out.tokens):,} held-out tokens", "dim")
    chosen = distil_model(opened.model, sums, held_out, keep, report=judged)
    if output is not None:
        chosen.model.save(output)
    if plot is not None:
        plot_sizes([each.to_json() for each in tried], chosen.to_json(), keep).save(plot)
    if as_json:
        dump({"keep": keep, "chosen": chosen.to_json(), "tried": [each.to_json() for each in tried]})
        return
    table = Table(title=f"size against perplexity; {keep:.4g} to be kept")
    for column in ("features", "experts", "megabytes", "perplexity", "kept", ""):
        table.add_column(column, justify="left" if column == "experts" else "right")
    for each in tried:
        table.add_row(
            f"{each.n_features:,}", " ".join(each.model.settings.experts), f"{each.n_bytes / 1e6:,.1f}",
            f"{each.perplexity:,.3f}", f"{each.kept:.4%}", "chosen" if each.to_json() == chosen.to_json() else "",
        )  # fmt: skip
    Console().print(table)
    for name, path in (("model", output), ("figure", plot)):
        if path is not None:
            typer.echo(f"{name}: {path}")


@app.command(epilog="Example: streamfit related runs/demo/model open --among queries.txt")
def related(
    model: ModelArgument,
    query: Annotated[str, typer.Argument(help="A word or a short text.")],
    top: Annotated[int, typer.Option(help="So many.", min=1)] = 10,
    among: Annotated[
        Path | None, typer.Option(help="File with a text a line: the nearest of them as well.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show tokens that are used like a word, and of a list of queries those that are about the same."""
    found = Related.of(LanguageModel.load(model))
    if unknown := found.unknown(query):
        say(Console(stderr=True), f"{unknown} of the query's tokens are unknown to the model: left out", "yellow")
    listed: dict[str, list[Neighbour]] = {"tokens": found.tokens(query, top)}
    if among is not None:
        try:
            lines = among.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            msg = f"cannot read {among}: {error}"
            raise ConfigError(msg, "a file of UTF-8 text, a query a line") from error
        listed["texts"] = found.texts(query, lines, top)
    if as_json:
        dump({name: [vars(each) for each in neighbours] for name, neighbours in listed.items()})
        return
    for name, neighbours in listed.items():
        table = Table(title=f"{name} like {query!r}")
        for column in ("text", "similarity", "seen"):
            table.add_column(column, justify="left" if column == "text" else "right")
        for each in neighbours:
            table.add_row(escape(repr(each.text)), f"{each.similarity:.3f}", f"{each.count:,}" if each.count else "")
        Console().print(table)


def _readable(corpus: str, field: str) -> Iterator[Placed]:
    """Documents of the files of a corpus, those aside that are no text: only where to look depends on them."""
    problem = Path(corpus) / "problem.json"
    given = load_problem(problem) if problem.is_file() else None
    documents = given.corpus.documents("train") if isinstance(given, LanguageProblem) else documents_of(corpus, field)
    for shard in documents.shards():
        with suppress(ShardError):
            yield from documents.placed(shard)


def documents_of(path: str, field: str = "text") -> Documents:
    """Files of text, JSON lines, tar files of texts, compressed or not; columns of Parquet or Arrow: by their name."""
    plain = path.removesuffix(".gz").removesuffix(".bz2").removesuffix(".zst")
    if plain.endswith(".tar"):
        return TarText(Files(path), field="txt" if field == "text" else field)
    if (kind := kind_told(path)) in ("parquet", "arrow"):
        return TableText(Files(path), field=field, kind=kind)
    return JsonLines(Files(path), field=field) if plain.endswith(".jsonl") else TextFiles(Files(path))


def texts_of(path: str, field: str) -> Iterator[str]:
    """Documents of files, one after another."""
    documents = documents_of(path, field)
    for shard in documents.shards():
        yield from documents.documents(shard)


def write_file(path: Path, text: str) -> None:
    """Write a text file.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise ConfigError(msg, "a file that can be written") from error


def read_prompt(given: str | None) -> str:
    """The text that was given, or what comes through standard input; nothing where that is a terminal.

    Raises
    ------
    ConfigError
        If it is not UTF-8.
    """
    piped_in = given == "-" or (given is None and not sys.stdin.isatty())
    try:
        text = sys.stdin.read() if piped_in else given or ""
        return text.encode(errors="surrogateescape").decode()  # some locales keep bytes that are no text for later
    except UnicodeError as error:
        msg = f"the prompt: {error}"
        raise ConfigError(msg, "text in UTF-8") from error


@contextmanager
def piped() -> Iterator[None]:
    """Let whoever reads the output leave early, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        # What is left in the buffer has nowhere to go, and would complain when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
