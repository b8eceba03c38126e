"""Stores of language models, with a run's folder and without: merged ones become models, held-out text stays out."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from cli_runs import ok, told
from languages import fitted
from test_cli import streamfit

from streamfit import LanguageModel
from streamfit.config import load_problem
from streamfit.store import Store


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run, to be added to."""
    shutil.copytree(fitted()[0].run, tmp_path / "run")
    return tmp_path / "run"


def weights(folder: Path) -> np.ndarray:
    return LanguageModel.load(folder).network.solution.weights


def test_a_store_without_a_run_becomes_the_same_model_by_a_config(run: Path, tmp_path):
    ok("export", run, tmp_path / "all.zip")
    ok("import", tmp_path / "all.zip", tmp_path / "bare")
    assert "--config" in told("solve", tmp_path / "bare", "-o", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    ok("solve", tmp_path / "bare", "--config", run / "problem.json", "-o", tmp_path / "model")
    ok("solve", run, "-o", tmp_path / "again")
    for made in ("model", "again"):
        found, expected = (folder / "model.safetensors" for folder in (tmp_path / made, run / "model"))
        assert found.read_bytes() == expected.read_bytes()
    assert "--config without --output" in told("solve", tmp_path / "bare", "--config", run / "problem.json")
    ok("solve", run, "--no-intercept", "-o", tmp_path / "through")
    assert (weights(tmp_path / "through") != weights(run / "model")).any()
    assert "a model of a table" in told("solve", run, "--alpha", 1, "--std", "-o", tmp_path / "std")


def test_a_mix_weighs_network_and_counts(run: Path, tmp_path):
    """Without a source the model is the one of before it came, in every bit; twice a source is twice its counts."""
    (tmp_path / "more").mkdir()
    for i in range(40):
        (tmp_path / "more" / f"{i}.txt").write_text(f"def number{i}(a, b):\n    return a + {i} * b\n" * 5)
    ok("solve", run, "--alpha", 10, "-o", tmp_path / "before")
    ok("add", run, tmp_path / "more", "--label", "source=extra")
    for weight in (0, 1, 2):
        ok("solve", run, "--mix", f"source:extra={weight}", "--alpha", 10, "-o", tmp_path / str(weight))
    kept, gone = (folder / "model.safetensors" for folder in (tmp_path / "before", tmp_path / "0"))
    assert kept.read_bytes() == gone.read_bytes()
    none, once, twice = (LanguageModel.load(tmp_path / str(weight)) for weight in (0, 1, 2))
    assert once.counts - none.counts == twice.counts - once.counts
    assert (once.counts - none.counts).counts.sum() > 1000
    np.testing.assert_array_less(0, np.abs(weights(tmp_path / "2") - weights(tmp_path / "1")).max())


def test_a_mix_weighs_network_and_topic_that_are_solved_apart(tmp_path):
    """Without a source both are those of before it came, and twice a source weighs on both."""
    texts = [Path(shard.uri).read_text() for shard in fitted()[0].corpus.documents("train").shards()]
    for name, some in {"data/a": texts[:8], "data/valid": texts[8:10], "more/b": texts[10:14]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.txt").write_text(" ".join(some))
    (tmp_path / "lm.toml").write_text(
        'kind = "language_model"\nrun = "run"\n[corpus]\nroot = "data"\nvalidation = "data/valid.txt"\n'
        '[features]\ntokenizer = "words"\nvocab_size = 300\nn_context = 3\nembedding_dims = 24\nn_centers = 8\n'
        'topic_dims = 6\ntopic_window = 24\n[model]\nexperts = ["network", "ngram"]\n[solve]\nalphas = [10.0]\n'
    )
    ok("fit", "lm.toml", cwd=tmp_path)
    ok("solve", "run", "--alpha", 10, "-o", "before", cwd=tmp_path)
    ok("add", "run", "more", "--label", "source=extra", cwd=tmp_path)
    for name, mix, alpha in (
        ("none", "source:extra=0", 10),
        ("twice", "source:extra=2", 10),
        ("all", "source:*=1", 10),
    ):
        ok("solve", "run", "--mix", mix, "--alpha", alpha, "-o", name, cwd=tmp_path)
    made = {name: LanguageModel.load(tmp_path / name) for name in ("before", "none", "twice", "all")}
    refused = told("refine", "run", "--alpha", 10, "-o", "refined", cwd=tmp_path)
    assert "its network and topic are solved apart" in refused
    ok("solve", "run", "--no-intercept", "--alpha", 10, "-o", "through", cwd=tmp_path)
    assert not LanguageModel.load(tmp_path / "through").network.solution.intercept.any()
    for part in (lambda m: m.network.solution.weights, lambda m: m.topic.sums.gram, lambda m: m.topic.sums.mean_y):
        np.testing.assert_array_equal(part(made["none"]), part(made["before"]))
        assert np.abs(part(made["twice"]) - part(made["all"])).max() > 0
        assert np.abs(part(made["all"]) - part(made["before"])).max() > 0


def test_fractions_weigh_the_network_and_what_they_do_not_weigh_is_said(run: Path, tmp_path):
    said = ok("solve", run, "--mix", "source:*=0.5", "--alpha", 10, "-o", tmp_path / "half")
    assert "n-gram counts are whole numbers" in " ".join(said.split())
    ok("solve", run, "--alpha", 20, "-o", tmp_path / "whole")  # half of the sums with 10 are all of them with 20
    np.testing.assert_allclose(weights(tmp_path / "half"), weights(tmp_path / "whole"), atol=1e-6)
    assert LanguageModel.load(tmp_path / "half").counts == LanguageModel.load(tmp_path / "whole").counts
    ok("solve", run, "--alpha", 10, "-o", tmp_path / "other")
    assert np.abs(weights(tmp_path / "half") - weights(tmp_path / "other")).max() > 1e-3


def test_copies_of_held_out_files_are_not_added(run: Path, tmp_path):
    problem = load_problem(run / "problem.json")
    held = [Path(s.uri) for part in ("validation", "test") for s in problem.corpus.documents(part).shards()]
    trained = [Path(s.uri) for s in problem.corpus.documents("train").shards()]
    (tmp_path / "copy").mkdir()
    for i, path in enumerate([*held, *trained]):
        shutil.copy(path, tmp_path / "copy" / f"{i}.txt")
    for i in range(30):
        (tmp_path / "copy" / f"new{i}.txt").write_text(f"import number{i}\n" * 20)
    before = {*Store(run / "store").counted()}
    said = " ".join(ok("add", run, tmp_path / "copy").split())
    assert "files that are copies of the run's validation or test text" in said
    came = {shard.content_id for shard in Store(run / "store").counted().values() if shard.content_id not in before}
    assert came
    held_ids = {s.content_id for part in ("validation", "test") for s in problem.corpus.documents(part).shards()}
    assert not came & held_ids
    (tmp_path / "only").mkdir()
    shutil.copy(held[0], tmp_path / "only" / "x.txt")
    done = streamfit("add", run, tmp_path / "only")
    assert (done.returncode, "left out 1 files" in done.stdout) == (2, True)
    assert "a corpus without any rows" in done.stderr


def write_members(path: Path, texts: list[str], columns: dict[str, str]) -> None:
    """A tar file of texts, each with its columns beside it."""
    with tarfile.open(path, "w") as archive:
        for i, text in enumerate(texts):
            for ending, content in (("txt", text), ("json", json.dumps(columns))):
                data = content.encode()
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "tar"])
def test_named_parts_are_not_trained_on_whatever_their_format(tmp_path, kind):
    """Beside the training text in one folder, and as copies that are added later; they need no labels."""
    texts = [Path(shard.uri).read_text() for shard in fitted()[0].corpus.documents("train").shards()]
    (tmp_path / "data").mkdir()
    for name, part in {"train": texts[:6], "valid": texts[6:8], "test": texts[8:10]}.items():
        pieces = [text[lo : lo + 1500] for text in part for lo in range(0, len(text), 1500)]
        path = tmp_path / "data" / f"{name}.{kind}"
        labels = {"site": ["web"] * len(pieces)} if name == "train" else {}
        if kind in ("parquet", "arrow"):
            table = pa.table({"text": pieces, **labels})
            pq.write_table(table, path) if kind == "parquet" else pa.feather.write_feather(table, path)
        elif kind == "tar":
            write_members(path, pieces, dict.fromkeys(labels, "web"))
        else:
            path.write_text("".join(json.dumps({"text": p} | dict.fromkeys(labels, "web")) + "\n" for p in pieces))
    (tmp_path / "lm.toml").write_text(
        f'kind = "language_model"\nrun = "run"\n[corpus]\nkind = "{kind}"\nroot = "data"\n'
        f'validation = "data/valid.{kind}"\ntest = "data/test.{kind}"\n[features]\ntokenizer = "words"\n'
        "vocab_size = 300\nn_centers = 0\nlinear = false\ntopic_dims = 4\nn_context = 3\nembedding_dims = 12\n"
        '[model]\nexperts = ["ngram"]\n[solve]\nalphas = [1.0]\n[corpus.labels]\ncolumns = ["site"]\n'
    )
    ok("fit", "lm.toml", cwd=tmp_path)
    counted = Store(tmp_path / "run" / "store").counted().values()
    assert {Path(shard.uri).name for shard in counted} == {f"train.{kind}"}
    assert {dict(shard.labels)["site"] for shard in counted} == {"web"}
    shutil.copy(tmp_path / "data" / f"test.{kind}", tmp_path / f"copy.{kind}")
    refused = streamfit("add", "run", f"copy.{kind}", cwd=tmp_path)
    assert "left out 1 files" in refused.stdout
    assert {*Store(tmp_path / "run" / "store").counted()} == {shard.content_id for shard in counted}


@pytest.mark.parametrize("root", ["", "train.txt"])
def test_an_official_split_is_named_in_the_config(tmp_path, root):
    """One file a part, as benchmarks have them, beside one another or not; `add` takes all that is new."""
    texts = [Path(shard.uri).read_text() for shard in fitted()[0].corpus.documents("train").shards()]
    (tmp_path / "data").mkdir()
    for name, part in {"train": texts[:12], "valid": texts[12:15], "test": texts[15:18]}.items():
        (tmp_path / "data" / f"{name}.txt").write_text(" ".join(part))
    (tmp_path / "words.toml").write_text(
        f'kind = "language_model"\nrun = "run"\n[corpus]\nroot = "{tmp_path / "data" / root}"\n'
        'validation = "data/valid.txt"\ntest = "data/test.txt"\n[features]\ntokenizer = "words"\nvocab_size = 2000\n'
        "embedding_dims = 16\nn_centers = 0\nlinear = false\ntopic_dims = 8\n"
        '[model]\nexperts = ["ngram", "classes"]\nclasses = [50]\n'
        "[solve]\nalphas = [1.0]\n"
    )
    ok("fit", "words.toml", cwd=tmp_path)
    counted = Store(tmp_path / "run" / "store").counted().values()
    assert [Path(shard.uri).name for shard in counted] == ["train.txt"]
    problem = load_problem(tmp_path / "run" / "problem.json")
    for part in ("valid", "test"):
        documents = problem.corpus.documents("validation" if part == "valid" else part)
        assert [Path(shard.uri).name for shard in documents.shards()] == [f"{part}.txt"]
    assert "perplexity" in ok("evaluate", tmp_path / "run" / "model", tmp_path / "data" / "test.txt")
    (tmp_path / "more.txt").write_text(texts[19])
    ok("add", tmp_path / "run", tmp_path / "more.txt", tmp_path / "data")
    names = sorted(Path(shard.uri).name for shard in Store(tmp_path / "run" / "store").counted().values())
    assert names == ["more.txt", "train.txt"]
    text = (tmp_path / "words.toml").read_text()
    (tmp_path / "words.toml").write_text(text.replace('validation = "data/valid.txt"', "split = [1.0, 0.0, 0.0]"))
    assert "or `validation` files" in told("fit", "words.toml", cwd=tmp_path)


FEW = (
    'kind = "language_model"\nrun = "run"\n[corpus]\nroot = "data"\nsplit = [0.6, 0.2, 0.2]\n[solve]\nalphas = [10.0]\n'
    'folds = 2\n[features]\nvocab_size = 300\nn_context = 3\nembedding_dims = 12\nn_centers = 0\nlinear = false\n'
)  # fmt: skip


def write_texts(folder: Path) -> None:
    folder.mkdir()
    for i, shard in enumerate(fitted()[0].corpus.documents("train").shards()):
        (folder / f"{i}.txt").write_text(Path(shard.uri).read_text())


def test_counts_alone_are_a_model(tmp_path):
    """Without a network and a topic: what is mixed are n-grams, and their model alone is what the mixture is."""
    write_texts(tmp_path / "data")
    (tmp_path / "lm.toml").write_text(FEW + '[model]\nexperts = ["ngram"]\n')
    ok("fit", "lm.toml", cwd=tmp_path)
    model = LanguageModel.load(tmp_path / "run" / "model")
    rows = np.random.default_rng(0).integers(0, 300, (50, model.n_context)).astype(np.int32)
    np.testing.assert_allclose(model.distribution(rows), model.ngram.distribution(rows), rtol=1e-5, atol=1e-8)
    (tmp_path / "lm.toml").write_text(FEW + '[model]\nexperts = ["ngram", "network"]\n')
    assert "needs n_centers or n_fourier above 0" in told("fit", "lm.toml", "--dry-run", cwd=tmp_path)
    assert model.network is None
    assert model.topic is None
    card = ok("card", "run/model", cwd=tmp_path)
    assert f"{Store(tmp_path / 'run' / 'store').head().n_rows:,} rows" in card
    assert "unknown" not in card
    # Nor do other features come of a config that a store was not made with.
    (tmp_path / "lm.toml").write_text(FEW.replace("n_centers = 0", "n_centers = 5"))
    refused = told("solve", "run", "--config", "lm.toml", "-o", "other", cwd=tmp_path)
    assert "was made with n_centers = 0; expected n_centers = 5 as in the config" in refused
    (tmp_path / "lm.toml").write_text(FEW.partition("[features]")[0])
    assert "'network' without RBF centers" in told("solve", "run", "--config", "lm.toml", "-o", "other", cwd=tmp_path)


def test_fourier_features_of_decayed_sums_are_a_network(tmp_path):
    """Of a window that is longer than the n-grams'; a store of other decays is not taken for it."""
    write_texts(tmp_path / "data")
    config = FEW + "n_fourier = 40\nfourier_decays = [0.5, 0.9]\ntopic_window = 20\n"
    (tmp_path / "lm.toml").write_text(config)
    ok("fit", "lm.toml", cwd=tmp_path)
    model = LanguageModel.load(tmp_path / "run" / "model")
    assert (model.n_context, model.experts) == (20, ("network", "ngram"))
    features = model.network.features
    assert (features.inner.n_features, features.n_features) == (24, 40)
    rows = np.random.default_rng(0).integers(0, 300, (50, 20)).astype(np.int32)
    far = rows.copy()
    far[:, 0] = (far[:, 0] + 1) % 300  # the farthest token of the window
    assert not np.allclose(features(rows), features(far))
    z = np.column_stack(
        [
            (1 - decay) * sum(decay**j * part.table[rows[:, 19 - j]] for j in range(20))
            for decay, part in zip((0.5, 0.9), features.inner.parts, strict=True)
        ]
    )
    np.testing.assert_allclose(features.inner(rows), z, rtol=1e-4, atol=1e-5)
    p = model.distribution(rows)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    (tmp_path / "lm.toml").write_text(config.replace("0.9]", "0.8]"))
    assert "fourier_decays = [0.5, 0.9]" in told("fit", "lm.toml", cwd=tmp_path)
