"""Distilling: what leaves is cheap, what stays is solved as if nothing else had been, and it works as a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamfit.errors import ConfigError
from streamfit.model_runs import ModelRun, doubt_of
from streamfit.report.plots import plot_sizes
from streamfit.solve import removal_costs, solve
from streamfit.text import LanguageModel, explain, origins_of
from streamfit.text.contexts import context_rows
from streamfit.text.distill import Candidate, NetworkPath, distill, model_bytes, with_prompts
from streamfit.text.network_sums import columns, network_sums
from streamfit.text.next_token import NextToken
from tests.languages import folder, language
from tests.test_cli import streamfit


@pytest.fixture(scope="module")
def run() -> ModelRun:
    language()
    return ModelRun.open(folder())


@pytest.fixture(scope="module")
def tried(run: ModelRun) -> list[Candidate]:
    """All candidates, and the chosen one last."""
    found: list[Candidate] = []
    chosen = distill(run.model, run.moments(), run.held_out_rows(3000), 0.97, report=found.append)
    return [*found, chosen]


def test_the_smallest_that_keeps_enough_is_chosen(tried):
    *every, chosen = tried
    enough = [each for each in every if each.kept >= 0.97]
    assert chosen.kept >= 0.97
    assert chosen.n_bytes == min(each.n_bytes for each in enough)
    assert chosen.n_features < 108
    assert chosen.n_bytes == model_bytes(chosen.model)
    whole = max(every, key=lambda each: each.n_features)
    assert whole.kept == pytest.approx(1.0, abs=2e-3), "float32 weights lose nothing that shows"
    by_size = {each.n_features: each for each in every if "ngram" in each.model.settings.experts}
    assert by_size[0].model.settings.experts == ("ngram",), "the network as a whole is tried without as well"


def test_what_stays_is_solved_from_the_sums_of_what_stays(run, tried):
    sums, alpha = network_sums(run.moments(), run.model.network), run.model.network.solution.alpha
    costs = removal_costs(sums, alpha).increases
    for each in tried:
        if each.model.network is None:
            continue
        kept = np.array(each.model.network.info["kept"])
        expected = solve(columns(sums, kept), alpha).weights
        np.testing.assert_allclose(each.model.network.solution.weights, expected, atol=1e-6)
        assert each.model.network.solution.weights.dtype == np.float32
    first = next(each for each in tried if each.n_features == round(0.75 * 108))
    left = np.setdiff1d(np.arange(108), first.model.network.info["kept"])
    assert costs[left].max() < np.median(costs), "what left was cheap"
    assert int(np.argmin(costs)) in left


def test_a_small_model_is_a_model_like_any_other(run, tried, tmp_path: Path):
    small = min((each for each in tried if each.model.network is not None), key=lambda each: each.n_features).model
    small.save(tmp_path / "small")
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert 0 < size - model_bytes(small) < 5000, "its arrays, and their names"
    back = LanguageModel.load(tmp_path / "small")
    contexts, _ = context_rows(back.tokenizer.encode(["def f(self):\n    return 1\n"]), back.n_context)
    np.testing.assert_array_equal(back.distribution(contexts), small.distribution(contexts))
    fast = NextToken(back)
    for context, p in zip(contexts, back.distribution(contexts), strict=True):
        np.testing.assert_allclose(fast(context), p, rtol=2e-3, atol=1e-7)
    places = origins_of(back.network.info)
    found = explain(back, "import ", origins=places)
    assert sum(share.kind == "center" for share in found.shares) == len(places)
    assert found.probability == pytest.approx(found.likely[0][1], rel=1e-4)
    _, judge = doubt_of(tmp_path / "small", run.folder.parent)
    assert len(judge.leverage.mean) == back.network.features.n_features
    again = distill(back, run.moments(), run.held_out_rows(2000), 0.5)
    assert set(again.model.network.info["kept"] if again.model.network else ()) <= set(back.network.info["kept"])


def test_prompts_have_their_share_of_the_sums_and_of_the_choice(run):
    text = 'raise TypeError("expected a number")\n' * 60
    corpus, prompts = run.moments(), run.count([text])
    contexts, tokens = context_rows(run.model.tokenizer.encode([text]), run.model.n_context)
    assert prompts.n_rows == len(tokens)
    phi = run.model.network.features(contexts).astype(np.float64)
    both = with_prompts(corpus, prompts, 0.25).centered()
    whole = corpus.centered()
    assert both.weight == pytest.approx(whole.weight)
    np.testing.assert_allclose(both.mean_x, 0.75 * whole.mean_x + 0.25 * phi.mean(axis=0), rtol=1e-4, atol=1e-6)
    with pytest.raises(ConfigError, match="a share of 1"):
        with_prompts(corpus, prompts, 1.0)

    def error(sums) -> float:
        """Squared error, on half corpus and half prompts, of the eleven features that are left by some sums."""
        kept = np.array(NetworkPath.of(run.model, sums).at(11).network.info["kept"])
        part = columns(network_sums(with_prompts(corpus, prompts, 0.5), run.model.network), kept)
        b = solve(part, 1.0).weights
        return float(part.ss_y.sum() - 2 * np.vdot(b, part.cross) + np.vdot(b, part.gram @ b))

    assert error(with_prompts(corpus, prompts, 0.5)) < error(corpus)


def test_impossible_shares_are_refused(run):
    for keep in (0.0, 1.5):
        with pytest.raises(ConfigError, match=f"keep {keep}"):
            distill(run.model, run.moments(), run.held_out_rows(2000), keep)


def test_the_command_distils(tmp_path: Path):
    (tmp_path / "p.txt").write_text("import os\nimport sys\n")
    options = ("--keep", 0.9, "--rows", 2000, "--prompts", tmp_path / "p.txt", "-o", tmp_path / "small")
    options += ("--plot", tmp_path / "sizes.svg")
    done = streamfit("distill", folder(), *options, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["chosen"]["kept"] >= 0.9
    assert facts["chosen"] in facts["tried"]
    drawn = plot_sizes(facts["tried"], facts["chosen"], 0.9)
    assert [row["chosen"] for row in drawn.rows].count(True) == facts["tried"].count(facts["chosen"])
    assert [row["n_bytes"] for row in drawn.rows] == sorted(each["n_bytes"] for each in facts["tried"])
    assert "megabytes" in (tmp_path / "sizes.svg").read_text()
    assert LanguageModel.load(tmp_path / "small").vocab_size == language().vocab_size
    shown = streamfit("distill", folder(), "--keep", 1.0, "--rows", 1024)
    assert "chosen" in shown.stdout
    steps = shown.stderr.splitlines()
    assert "judged on 1,024 held-out tokens" in steps[0]
    assert [line.partition(":")[0] for line in steps[1:]] == [str(1 + i) for i in range(len(steps) - 1)]
    assert len(steps) > 5, "a line for each size as it is judged, and nothing of it where JSON is read"
    assert all("perplexity" in line for line in steps[1:])
    assert streamfit("distill", tmp_path / "small").returncode == 2, "without its run"
