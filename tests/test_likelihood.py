"""Likelihoods of continuations, and the adapter of the lm-evaluation-harness on a task of our own where it is there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from streamfit.errors import ConfigError
from streamfit.text import Evaluator, Sampling, generate_text
from streamfit.text.contexts import context_rows
from streamfit.text.likelihood import continuation_likelihoods
from tests.languages import folder, language


def test_a_continuation_is_as_likely_as_a_loop_says():
    model = language()
    pairs = [("import", " os\n"), ("", "def f("), ("x = ", "1"), ("a", "")]
    for (context, text), found in zip(pairs, continuation_likelihoods(model, pairs), strict=True):
        moved = context.rstrip(" ")
        ids = model.tokenizer.encode([context + text])[0]
        start = len(model.tokenizer.encode([moved])[0])
        contexts, tokens = context_rows([ids], model.n_context)
        p = model.distribution(contexts)[start : len(ids)].astype(np.float64)
        own = tokens[start : len(ids)]
        assert found.n_tokens == len(own)
        assert found.log_probability == pytest.approx(np.log(p[np.arange(len(own)), own]).sum(), rel=1e-5, abs=1e-12)
        assert found.greedy == (p.argmax(axis=1) == own).all()


def test_parts_of_a_text_add_up_and_what_the_model_writes_is_greedy():
    model = language()
    text = "".join(generate_text(model, "class ", Sampling(12, 0.0)))
    (written,) = continuation_likelihoods(model, [("class ", text)])
    whole = continuation_likelihoods(model, [("", "def f(self):\n    return self.x\n")])[0]
    contexts, tokens = context_rows(model.tokenizer.encode(["def f(self):\n    return self.x\n"]), model.n_context)
    score = Evaluator(model).documents(["def f(self):\n    return self.x\n"])
    end = np.log(float(model.distribution(contexts[-1:])[0, tokens[-1]]))
    assert whole.log_probability + end == pytest.approx(-list(score.values())[-1].nats, rel=1e-5)
    assert written.n_tokens <= 13
    first = continuation_likelihoods(model, [("class", " " + text)])[0]
    assert first == written, "the space between belongs to the continuation"
    with pytest.raises(ConfigError, match="expert"):
        continuation_likelihoods(model, [("", "b")], expert="oracle")


def _request(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


@pytest.mark.filterwarnings("default")  # the harness and its dependencies have some
def test_the_harness_gets_what_it_asks_for():
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from streamfit.harness import StreamfitLM

    lm, model = StreamfitLM(str(folder()), batch_size=1), language()
    pairs = [("import", " os"), ("", "x")]
    expected = continuation_likelihoods(model, pairs)
    assert lm.loglikelihood([_request(*pair) for pair in pairs]) == [(e.log_probability, e.greedy) for e in expected]
    assert lm.loglikelihood_rolling([_request("x")]) == [expected[1].log_probability]
    greedy = "".join(generate_text(model, "def ", Sampling(30, 0.0)))
    assert lm.generate_until([_request("def ", {"until": [], "max_gen_toks": 30})]) == [greedy]
    stop = greedy[3:5]
    assert lm.generate_until([_request("def ", {"until": stop, "max_gen_toks": 30})]) == [greedy.partition(stop)[0]]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_local_task_runs_in_the_harness(tmp_path: Path):
    """Three kinds of request through `simple_evaluate`, from files of this folder alone."""
    lm_eval = pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    from lm_eval.tasks import TaskManager

    from streamfit.harness import StreamfitLM

    rows = [
        {"text": "import os\nimport sys\n", "start": "def __init__(", "good": "self", "bad": "\u96ea"},
        {"text": "class A:\n    pass\n", "start": "return ", "good": "self", "bad": "%%%"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    head = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\ntest_split: test\n"
    )
    (tmp_path / "choice.yaml").write_text(
        f"task: own_choice\n{head}output_type: multiple_choice\ndoc_to_text: '{{{{start}}}}'\n"
        "doc_to_choice: '{{[good, bad]}}'\ndoc_to_target: 0\ntarget_delimiter: ''\nmetric_list:\n  - metric: acc\n"
    )
    (tmp_path / "rolling.yaml").write_text(
        f"task: own_rolling\n{head}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    (tmp_path / "until.yaml").write_text(
        f"task: own_until\n{head}output_type: generate_until\ndoc_to_text: '{{{{start}}}}'\n"
        "doc_to_target: '{{good}}'\ngeneration_kwargs:\n  until: ['\\n']\n  max_gen_toks: 5\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    results = lm_eval.simple_evaluate(
        model=StreamfitLM(str(folder())),
        tasks=["own_choice", "own_rolling", "own_until"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    assert results["own_choice"]["acc,none"] == 1.0
    nats = [e.log_probability for e in continuation_likelihoods(language(), [("", row["text"]) for row in rows])]
    bits = -sum(nats) / np.log(2) / sum(len(row["text"].encode()) for row in rows)
    assert results["own_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-6)
    assert 0.0 <= results["own_until"]["exact_match,none"] <= 1.0
