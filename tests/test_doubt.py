"""Doubt: leverages are the hat matrix's, signals are what loops say, strange text is doubted more than its own kind."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import doubt as pipeline
from streamfit.errors import CorpusError, MismatchError, StoreError
from streamfit.model_runs import ModelRun, doubt_of
from streamfit.solve import posterior
from streamfit.store import Store
from streamfit.text import Doubt
from streamfit.text.contexts import context_rows
from streamfit.text.doubt import Leverage, signals, windows
from tests.languages import fitted, folder, language, many_experts
from tests.test_cli import streamfit

OWN = 'def copy(self):\n    """Return a shallow copy."""\n    return self.__class__(self)\n' * 3
STRANGE = "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist Verpflichtung. " * 3


@pytest.fixture(scope="module")
def judge() -> Doubt:
    return doubt_of(folder())[1]


def test_leverages_are_those_of_the_posterior():
    store, model = fitted()[1].store, language()
    moments = store.moments()
    leverage = Leverage.of(moments, model.network)
    contexts = np.random.default_rng(0).integers(0, model.vocab_size, size=(40, model.n_context))
    phi = model.network.features(contexts)
    expected = posterior(moments, model.network.solution.alpha).leverage(phi)
    np.testing.assert_allclose(leverage(phi), expected, rtol=1e-3)
    with pytest.raises(MismatchError, match="each block"):
        Leverage.of(moments, replace(model.network, solution=replace(model.network.solution, block_alphas={"a": 1.0})))


def test_leverages_beside_a_topic_are_of_the_networks_own_features():
    model = many_experts()
    moments = Store(folder().parent.parent / "many").moments()
    leverage = Leverage.of(moments, model.network)
    assert len(leverage.mean) == model.network.features.n_features < moments.frame.n_features
    seen = signals(model, leverage, [OWN])
    assert (seen.leverage > 0).all()
    assert (seen.leverage < 1).all()


def test_leverages_of_the_training_rows_add_up_to_the_degrees_of_freedom():
    problem, run = fitted()
    model = language()
    documents = problem.corpus.documents("train")
    texts = [text for shard in documents.shards() for text in documents.documents(shard)]
    contexts, _ = context_rows(model.tokenizer.encode(texts), model.n_context)
    leverage = Leverage.of(run.store.moments(), model.network)
    total = sum(leverage(model.network.features(part)).sum() for part in np.array_split(contexts, 50))
    assert total == pytest.approx(model.network.solution.effective_dof + 1.0, rel=1e-3)


def test_signals_are_what_the_model_says_token_by_token(judge):
    model = language()
    seen = judge.signals(model, ["import os\n", ""])
    contexts, tokens = context_rows(model.tokenizer.encode(["import os\n", ""]), model.n_context)
    for i, (context, token) in enumerate(zip(contexts, tokens, strict=True)):
        p = model.distribution(context[None])[0].astype(np.float64)
        assert seen.surprise[i] == pytest.approx(-np.log(p[token]), rel=1e-4)
        assert seen.entropy[i] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-4)
        assert seen.confidence[i] == pytest.approx(p.max(), rel=1e-4)
        assert seen.right[i] == (p.argmax() == token)


def test_strange_text_is_doubted_and_the_models_own_kind_is_not(judge):
    model = language()
    own, strange = judge.signals(model, [OWN]), judge.signals(model, [STRANGE])
    assert judge.score(strange).mean() > judge.score(own).mean() + 0.2
    assert judge.unlike(strange) > 0.9
    assert judge.unlike(own) < 0.9


def test_the_chance_of_error_is_calibrated_on_text_that_was_held_out(judge):
    """Not on the text it was learnt from: the run's test part."""
    seen = judge.signals(language(), ModelRun.open(folder()).test())
    chance, wrong = judge.error(seen), ~seen.right
    assert chance.mean() == pytest.approx(wrong.mean(), abs=0.08)
    sure = chance < np.quantile(chance, 0.25)
    assert wrong[sure].mean() < wrong.mean() - 0.15


def test_doubt_is_kept_with_the_model_and_not_taken_for_another_solves(judge, tmp_path: Path):
    model = language()
    back = Doubt.load(folder(), model)
    assert back is not None
    assert "linear model" not in (folder() / "doubt" / "README.md").read_text()
    seen = judge.signals(model, [OWN])
    again = back.signals(model, [OWN])
    np.testing.assert_allclose(again.leverage, seen.leverage, rtol=1e-5)
    np.testing.assert_allclose(back.score(again), judge.score(seen), rtol=1e-5)
    np.testing.assert_allclose(back.error(again), judge.error(seen), rtol=1e-5)
    other = replace(model, network=replace(model.network, info={"store": "another"}))
    assert Doubt.load(folder(), other) is None
    assert Doubt.load(tmp_path, model) is None
    other.save(tmp_path / "model")
    with pytest.raises(StoreError, match="no run of a language model"):
        doubt_of(tmp_path / "model")
    with pytest.raises(MismatchError, match="other sums"):
        doubt_of(tmp_path / "model", folder().parent)
    with pytest.raises(CorpusError, match="of held-out text"):
        Doubt.fit(model, fitted()[1].store.moments(), ["short"])


def test_windows_are_means_of_whole_stretches():
    assert windows(np.arange(7.0), 3).tolist() == [1.0, 4.0]
    assert windows(np.arange(8.0).reshape(4, 2), 2).tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_the_command_names_doubtful_tokens(tmp_path: Path):
    facts = json.loads(streamfit("doubt", folder(), STRANGE, "--json").stdout)
    own = json.loads(streamfit("doubt", folder(), "--json", stdin=OWN).stdout)
    assert facts["unlike"] > own["unlike"]
    assert facts["doubt"] == pytest.approx(np.mean([t["doubt"] for t in facts["tokens"]]))
    shown = streamfit("doubt", folder(), OWN, "--top", 4)
    assert shown.returncode == 0, shown.stderr
    assert "the 4 tokens" in shown.stdout
    shutil.copytree(folder(), tmp_path / "m", ignore=shutil.ignore_patterns("doubt"))
    assert streamfit("doubt", tmp_path / "m", OWN).returncode == 2
    assert streamfit("doubt", tmp_path / "m", OWN, "--run", folder().parent).returncode == 0
    assert (tmp_path / "m" / "doubt" / "model.json").is_file()


def test_the_pipeline_measures(tmp_path: Path, capsys):
    (tmp_path / "de.txt").write_text(STRANGE * 5)
    facts = pipeline.main(
        folder(),
        [f"german={tmp_path / 'de.txt'}"],
        characters=8_000,
        output=tmp_path / "d.json",
        plot=tmp_path / "d.svg",
    )
    assert json.loads((tmp_path / "d.json").read_text()) == facts
    assert facts["telling apart"]["german"]["doubt"]["16"] > 0.9
    inside = facts["selective"]["inside"]
    assert inside["best possible"]["mean"] <= inside["chance of error"]["mean"] <= inside["chance of error"]["1"]
    assert len({way["1"] for way in inside.values()}) == 1, "all of the text, in whatever order"
    assert "telling german" in capsys.readouterr().out
    assert (tmp_path / "d.svg").read_text().count("<path") > 10
