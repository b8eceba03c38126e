"""Configurations: the shipped ones are valid, and a mistake is one line that names the key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from streamfit.config import LanguageProblem, RidgeProblem, load_machine, load_problem
from streamfit.corpus import Labels
from streamfit.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
RIDGE = """
kind = "ridge"
run = "r"
[corpus]
root = "d"
features = ["a"]
target = ["y"]
"""


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.name)
def test_shipped_configs_are_valid(path: Path):
    if path.name.startswith("machine_"):
        assert load_machine(path).workers >= 1
    else:
        assert isinstance(load_problem(path), RidgeProblem | LanguageProblem)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("kind = 'rigde'", r"kind = 'rigde'.*did you mean 'ridge'"),
        ("alpa = 3", r"unknown key 'alpa'.*one of"),
        ("precison = 'float32'", r"unknown key 'precison'.*did you mean 'precision'"),
        ("[solve]\nalpha = [1]", r"unknown key 'solve.alpha'.*did you mean 'alphas'"),
        ("[solve]\nalphas = [0]", r"solve.alphas.0: .*greater than 0.*got 0"),
        ("[solve]\nalphas = [nan]", r"solve.alphas.0"),
        ("[solve]\nalphas = []", r"solve.alphas"),
        ("[solve]\nfolds = 1", r"solve.folds.*got 1"),
        ("[solve]\nalphas = 'auto'", r"solve.alphas: a list, in brackets \(got 'auto'\)"),
        ("[[features]]\nkind = 'rbf'\ncentres = 3", r"unknown key 'features.0.centres'"),
        ("[[features]]\nkind = 'spline'", r"features.0.kind.*got 'spline'"),
        ("[corpus.labels]\ncolums = ['a']", r"unknown key 'corpus.labels.colums'.*did you mean 'columns'"),
        ("[corpus.labels]\nperiod = 'week'", r"corpus.labels.period.*got 'week'"),
        ("[corpus.labels]\npath = '(?P<a'", r"corpus.labels: labels by the pattern '\(\?P<a'"),
        ("[corpus.labels]\ncolumns = ['a']\nfixed = {a = 'b'}", r"corpus.labels: the label 'a' from 2 places"),
        ("[corpus.labels.fixed]\nyear = 2026", r"corpus.labels.fixed.year: .*string.*got 2026"),
        ("[corpus.labels.fixed]\ntime = 'soon'", r"corpus.labels: the fixed label 'time' is 'soon'"),
        ("precision = 'float16'", r"precision.*got 'float16'"),
        ("run = 3", r"run"),
        ("x = = 3", r"valid TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, change: str, complaint: str):
    path = tmp_path / "c.toml"
    key = change.partition(" ")[0]
    kept = "\n".join(line for line in RIDGE.splitlines() if not line.startswith(f"{key} ="))
    # A key of the top level must stand before the first section.
    path.write_text(kept + "\n" + change if change.startswith("[") else change + "\n" + kept)
    with pytest.raises(ConfigError, match=complaint):
        load_problem(path)


def test_missing_keys_and_files_are_named(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text("kind = 'ridge'\nrun = 'r'\n")
    with pytest.raises(ConfigError, match="corpus: Field required"):
        load_problem(path)
    with pytest.raises(ConfigError, match="no config at"):
        load_problem(tmp_path / "none.toml")


def test_more_classes_than_half_the_vocabulary_are_refused(tmp_path: Path):
    path = tmp_path / "p.toml"
    text = "kind='language_model'\nrun='r'\n[corpus]\nroot='d'\n[features]\nvocab_size=1000\n[model]\n"
    path.write_text(text + "experts=['ngram','classes']\nclasses=[100, 501]\n")
    with pytest.raises(ConfigError, match=r"classes: 501; .* 500 at most"):
        load_problem(path)
    path.write_text(text + "experts=['ngram','classes']\n")  # what nobody chose is cut to what there is
    load_problem(path)
    (tmp_path / "t.json").write_text("{}")  # a tokenizer that is read says itself how many tokens it has
    path.write_text(text.replace("vocab_size=1000", "tokenizer='t.json'") + "experts=['classes']\nclasses=[3000]\n")
    load_problem(path)


def test_classes_need_one_column(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text(RIDGE.replace('["y"]', '["y", "z"]') + "n_classes = 3\n")
    with pytest.raises(ConfigError, match="exactly one target column, got 2"):
        load_problem(path)


@pytest.mark.parametrize(
    "text", ["kind = 'address'", "address = 'tcp://127.0.0.1:1'", "n_workers = -1", "kind = 'slurm'", "workers = 2"]
)
def test_impossible_machines_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_machine(path)


@pytest.mark.parametrize("split", ["[1, 0, 0]", "[0, 1, 0]", "[0.5, 0.2, 0.2]", "[1.2, 0.1, -0.3]"])
def test_a_split_needs_training_and_validation_text(tmp_path: Path, split: str):
    path = tmp_path / "c.toml"
    path.write_text(f"kind='language_model'\nrun='r'\n[corpus]\nroot='d'\nsplit={split}\n")
    with pytest.raises(ConfigError, match=r"three shares that add up to 1|or `validation` files"):
        load_problem(path)


def test_an_order_longer_than_the_context_is_refused(tmp_path: Path):
    path = tmp_path / "c.toml"
    path.write_text("kind='language_model'\nrun='r'\n[corpus]\nroot='d'\n[features]\nn_context=2\nngram_order=5\n")
    with pytest.raises(ConfigError, match="needs n_context of at least 4"):
        load_problem(path)


LABELS = """
[corpus.labels]
path = '(?P<part>[^/]+)'
columns = ["region"]
time = "stamp"
period = "month"
[corpus.labels.fixed]
source = "web"
"""


def test_labels_reach_every_kind_of_source(tmp_path: Path):
    expected = Labels("(?P<part>[^/]+)", ("region",), "stamp", "month", (("source", "web"),))
    path = tmp_path / "c.toml"
    path.write_text(RIDGE + LABELS)
    problem = load_problem(path)
    assert isinstance(problem, RidgeProblem)
    assert problem.corpus.table().labels == expected
    assert problem.corpus.table().label == "corpus"
    kept = tmp_path / "kept.json"
    kept.write_text(problem.model_dump_json())
    assert load_problem(kept) == problem
    for kind in ("jsonl", "dataset"):
        path.write_text(f"kind='language_model'\nrun='r'\n[corpus]\nroot='d'\nkind='{kind}'\n{LABELS}")
        assert load_problem(path).corpus.documents("train").labels == expected
    paths_only = LABELS.replace('columns = ["region"]\ntime = "stamp"\n', "")
    path.write_text(f"kind='language_model'\nrun='r'\n[corpus]\nroot='d'\n{paths_only}")
    assert load_problem(path).corpus.documents("train").labels == replace(expected, columns=(), time="")


@pytest.mark.parametrize("line", ["columns = ['a']", "time = 'a'"])
def test_text_files_have_no_columns(tmp_path: Path, line: str):
    path = tmp_path / "c.toml"
    path.write_text(f"kind='language_model'\nrun='r'\n[corpus]\nroot='d'\n[corpus.labels]\n{line}\n")
    with pytest.raises(ConfigError, match="corpus: labels: text files have only paths"):
        load_problem(path)
