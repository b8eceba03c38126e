"""Commands that use a language model: generate. Floor 7."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from streamfit.text import LanguageModel, Sampling, generate_text
from streamfit.text.model import EXPERTS

app = typer.Typer()

ModelArgument = Annotated[Path, typer.Argument(help="Folder of a language model.")]
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
    expert: Annotated[str, typer.Option(help=f"One of {', '.join(EXPERTS)}.")] = "mixture",
    echo: Annotated[bool, typer.Option(help="Write the prompt first.")] = True,
) -> None:
    """Continue a text with a language model; it is written as it is made."""
    language = LanguageModel.load(model)
    text = read_prompt(prompt)
    sampling = Sampling(tokens, temperature, top_k, top_p, seed)
    ends = [each.replace("\\n", "\n").replace("\\t", "\t") for each in stop or []]
    pieces = generate_text(language, text, sampling, stop=ends, expert=expert)  # type: ignore[arg-type]
    with piped():
        if echo:
            _write(text)
        for piece in pieces:
            _write(piece)
        _write("\n")


def read_prompt(given: str | None) -> str:
    """The text that was given, or what comes through standard input; nothing where that is a terminal."""
    if given == "-" or (given is None and not sys.stdin.isatty()):
        return sys.stdin.read()
    return given or ""


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
