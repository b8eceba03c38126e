"""The pages under docs/: examples run as they stand, links lead somewhere, and the reference is that of the code."""

import doctest
import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_cli import streamfit

from docs import make_reference

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
EXAMPLES = [page for page in PAGES if "```pycon" in page.read_text() or "```console" in page.read_text()]
_BLOCK = re.compile(r"^```(pycon|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Without waiting for the disk; no page pulls the plug."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def commands(text):
    """Commands of a console block, and what each prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.stem)
def test_examples_run_as_they_stand(page, tmp_path, monkeypatch):
    """Python and commands in the order of the page, in a folder of their own; `...` stands for anything."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    checker, ran = doctest.OutputChecker(), 0
    for kind, text in _BLOCK.findall(page.read_text()):
        if kind == "pycon":
            test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)
            test.globs = names  # one page is one session
            runner, faults = doctest.DocTestRunner(optionflags=FLAGS), []
            runner.run(test, out=faults.append, clear_globs=False)
            assert runner.failures == 0, "".join(faults)
            ran += len(test.examples)
            continue
        for command, expected in commands(text):
            program, *arguments = shlex.split(command)
            assert program == "streamfit", command
            done = streamfit(*arguments)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            got = done.stdout or "\n"
            assert checker.check_output(expected or "...\n", got, FLAGS), f"{command}\nexpected\n{expected}\ngot\n{got}"
            ran += 1
    assert ran


def test_the_commands_of_the_readme_follow_one_another(tmp_path, monkeypatch):
    """From a folder of data to a card, in this process instead of a cluster; `doctor` has a test of its own."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"carrier": rng.choice(["AA", "UA"], 2000), "distance": rng.uniform(100, 3000, 2000)})
    frame["day"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 200, 2000), unit="D")
    frame["delay"] = 10.0 * (frame["carrier"] == "AA") + frame["distance"] / 100 + rng.normal(size=2000)
    Path("flights").mkdir()
    frame[:1600].to_parquet("flights/rows.parquet", row_group_size=100)
    frame[1600:].to_parquet("june.parquet")
    Path("serial.toml").write_text('kind = "serial"\n')
    text = (DOCS.parent / "README.md").read_text().partition("## Fit your own")[2]
    block = re.search(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]
    lines = [line for whole in block.splitlines() for line in whole.partition("#")[0].split(";")]
    ran = []
    for line in lines:
        program, command, *arguments = shlex.split(line)
        assert program == ".venv/bin/streamfit"
        if command != "doctor":
            here = ["--machine", "serial.toml"] if command in ("fit", "predict", "evaluate") else []
            done = streamfit(command, *arguments, *here)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            ran.append(command)
    assert ran == ["init", "fit", "fit", "status", "solve", "evaluate", "predict", "report", "export-model", "card"]
    assert pd.read_parquet("out.parquet").columns.tolist() == ["delay_predicted", "delay_std"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    """To files of the repository, and to headings in them."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", t.lower()).replace(" ", "-") for t in titles}, target


def test_the_reference_is_that_of_the_code():
    """Made again it is the same; `python docs/make_reference.py` writes it."""
    assert (DOCS / "reference.md").read_text() == make_reference.reference()
