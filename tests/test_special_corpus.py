"""What is measured of a specialised corpus: near-duplicates, protocols that keep their word, and the run itself."""

from __future__ import annotations

import json
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from pipelines import special_corpus, special_measures
from streamfit.errors import ConfigError, CorpusError
from streamfit.text.contexts import context_rows
from streamfit.text.duplicates import near_duplicates
from streamfit.text.interpolate import Interpolation
from streamfit.text.ngram import NgramCounts
from streamfit.text.suffix_tables import suffix_tree

texts = st.lists(st.lists(st.sampled_from("abcdef"), max_size=12).map(" ".join), min_size=1, max_size=6)


@given(texts, st.integers(1, 3), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_near_duplicates_are_what_sets_of_runs_say(documents, run, share):
    words = [text.split() for text in documents]
    runs = [{tuple(w[i : i + run]) for i in range(len(w) - run + 1)} for w in words]
    expected = [
        [i != j and len(a & b) > share * min(len(a), len(b)) for j, b in enumerate(runs)] for i, a in enumerate(runs)
    ]
    assert near_duplicates(documents, run, share).toarray().tolist() == expected


def test_words_and_marks_make_runs_but_space_does_not():
    found = near_duplicates(["def f(x): return x", "def f( x ):\n    return x", "def g(x): return y"], run=4)
    assert found.nnz == 2
    assert found.toarray()[0, 1]
    for bad in ({"run": 0}, {"share": 1.0}):
        with pytest.raises(ConfigError, match="near-duplicates"):
            near_duplicates(["a"], **bad)


def written(n: int) -> dict[str, str]:
    """Files of random words, every third one a copy of the one before with another end."""
    rng = np.random.default_rng(0)
    found: dict[str, str] = {}
    for i in range(n):
        own = " ".join(f"w{w}" for w in rng.integers(0, 300, 60))
        found[f"{i}.py"] = f"{found[f'{i - 1}.py']}\nthe end {i}" if i % 3 == 2 else own
    return found


def test_protocols_hold_out_the_same_files_and_keep_near_duplicates_apart():
    every = written(90)
    kept, alike = special_corpus.sampled(every, 0)
    assert kept == every
    assert alike.nnz == 2 * 30
    apart, files = (special_corpus.by_file(kept, alike, apart=flag) for flag in (True, False))
    assert apart.test == files.test
    assert apart.copied == files.copied
    assert sum(files.copied) > 2
    assert len(apart.train) < len(files.train) == len(kept) - len(files.validation) - len(files.test)
    places, alike = list(kept.values()), alike.toarray()
    for before in (*apart.train, *apart.validation):
        assert not any(alike[places.index(before), places.index(text)] for text in apart.test)
    with pytest.raises(CorpusError, match="read more files"):
        special_corpus.by_file({"a": "x"}, csr_array((1, 1), dtype=bool), apart=True)


def test_a_sample_keeps_near_duplicates_together():
    every = written(90)
    kept, alike = special_corpus.sampled(every, sum(map(len, every.values())) // 3)
    assert len(every) / 4 < len(kept) < len(every) / 2
    of = near_duplicates(list(every.values())).toarray()
    whole = [name in kept for name in every]
    assert not of[np.ix_(whole, np.logical_not(whole))].any()
    np.testing.assert_array_equal(alike.toarray(), of[np.ix_(whole, whole)])


def test_every_paragraph_is_on_one_side():
    parts = special_corpus.by_paragraph({"a": "one\ntwo\n\n  three\n\n\nfour", **written(200)})
    found = [*parts.train, *parts.validation, *parts.test]
    assert sorted(found) == sorted(["one\ntwo\n", "  three\n", "four", *written(200).values()])
    assert len(parts.test) > 5
    assert len(parts.validation) > 5


def test_the_share_of_copies_is_what_averages_to_the_claim():
    facts = {
        "scores": {"held out": {"exact": {"top1": 0.3}, "ngram": {"top1": 0.5}}},
        "by_length": [{"training_top1": 0.2}, {"training_top1": 0.98}],
    }
    share = special_measures.what_it_takes(facts)["share_of_copies"]
    assert share * 0.98 + (1 - share) * 0.5 == pytest.approx(special_measures.CLAIM)
    facts["by_length"][-1]["training_top1"] = 0.9
    assert special_measures.what_it_takes(facts)["share_of_copies"] > 1


@given(st.lists(st.lists(st.integers(1, 4), max_size=20), min_size=2, max_size=5), st.integers(1, 3))
def test_figures_by_length_are_what_a_loop_counts(docs, k):
    arrays = [np.array(d, np.int32) for d in docs]
    contexts, tokens = context_rows(arrays[:-1], 3)
    asked = special_measures.Rows(*context_rows(arrays[-1:], 3))
    counts = NgramCounts.from_rows(contexts, tokens, 6)
    tree = suffix_tree(counts)[: k + 1]
    found = special_measures.by_length(Interpolation.fit(counts, tree=tree), tree, asked)
    followers: dict[tuple[int, ...], Counter[int]] = {}
    for row, token in zip(contexts.tolist(), tokens.tolist(), strict=True):
        followers.setdefault(tuple(row[3 - k :]), Counter())[token] += 1
    seen = [followers.get(tuple(row[3 - k :]), Counter()) for row in asked.contexts.tolist()]
    alone = [c for c in followers.values() if len(c) == 1]
    assert (found["length"], found["contexts"], found["contexts_with_one_answer"]) == (k, len(followers), len(alone))
    assert found["training_share_with_one_answer"] == pytest.approx(sum(c.total() for c in alone) / len(tokens))
    assert found["training_top1"] == pytest.approx(sum(max(c.values()) for c in followers.values()) / len(tokens))
    assert found["held_out_share_seen"] == pytest.approx(np.mean([len(c) > 0 for c in seen]))
    assert found["held_out_share_with_one_answer"] == pytest.approx(np.mean([len(c) == 1 for c in seen]))
    hits = [next(iter(c)) == t for c, t in zip(seen, asked.tokens.tolist(), strict=True) if len(c) == 1]
    assert found["held_out_top1_with_one_answer"] == pytest.approx(np.mean(hits) if hits else 0.0)
    assert found["least_probability_of_the_one_answer"] > 1 - 1e-5


def test_the_run_measures_what_it_says(tmp_path: Path, capsys):
    library = Path(sysconfig.get_path("stdlib"))
    (tmp_path / "code").mkdir()
    (tmp_path / "docs").mkdir()
    for path in sorted(library.glob("*.py"))[:60]:
        text = path.read_text(encoding="utf-8")[:4000]
        (tmp_path / "code" / path.name).write_text(text, encoding="utf-8")
        (tmp_path / "code" / f"old_{path.name}").write_text(text.replace("self", "me"), encoding="utf-8")
    (tmp_path / "docs" / "a.txt").write_text("What is written of the library stands here. " * 20)
    out, plot = tmp_path / "out.json", tmp_path / "out.svg"
    facts = special_corpus.main(
        str(tmp_path / "code"),
        [str(tmp_path / "docs")],
        tmp_path / "run",
        characters=0,
        vocab=400,
        centers=12,
        dims=64,
        tokens=600,
        output=out,
        plot=plot,
    )
    assert json.loads(out.read_text()) == facts
    assert plot.read_text().count("<svg") == 1
    assert facts["files"] > 100
    apart, files = facts["protocols"]["apart"], facts["protocols"]["files"]
    for found in facts["protocols"].values():
        remembered = found["scores"]["training, one answer"]
        assert remembered["exact"]["top1"] == 1.0
        assert remembered["exact"]["perplexity"] < 1.0001
        for row in found["by_length"]:
            assert row["least_probability_of_the_one_answer"] > 1 - 1e-5
        shares = [row["training_top1"] for row in found["by_length"]]
        assert shares == sorted(shares)
        longest = found["by_length"][-1]
        assert longest["held_out_top1"] == found["scores"]["held out"]["exact"]["top1"]
        assert longest["training_top1"] == pytest.approx(found["scores"]["training"]["exact"]["top1"], abs=0.05)
        assert found["selective"][-1] == pytest.approx(found["scores"]["held out"]["mixture"]["top1"])
        assert len(found["selective"]) == 100
    # The other version of a held-out file is worth much, and is why the two protocols differ.
    assert 0 < files["test_texts_copied"] == apart["test_texts_copied"]
    gain = {
        rows: files["scores"][rows]["exact"]["top1"] - apart["scores"][rows]["exact"]["top1"]
        for rows in ("held out", "held out, copied", "held out, others")
    }
    assert gain["held out, copied"] > gain["held out"] > 0.1
    assert gain["held out"] > gain["held out, others"]
    assert facts["claim"]["apart"]["new"] < facts["claim"]["files"]["new"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "must be copies of training text" in printed
    assert "exact interpolation by tokens of context" in printed
