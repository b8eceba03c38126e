"""Tokenizers: any text survives those that are trained here, and those made elsewhere are taken as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from streamfit.config import LanguageProblem
from streamfit.errors import ConfigError, MismatchError
from streamfit.held_out import evaluate_documents
from streamfit.jobs import fit
from streamfit.text import TRAINED, Tokenizer
from streamfit.text.stream import TextStream
from streamfit.text.tokenizer import tokenizer_id

TEXT = Path(__file__).read_text(encoding="utf-8")
ODD = ("", "def f", "naïve — 雪\n\t\x00", "<|document|>", "    \r\n  x")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_any_text_survives_a_trained_tokenizer(kind):
    tokenizer = Tokenizer.train([TEXT], 300, kind)
    assert tokenizer.vocab_size <= 300
    assert tokenizer.token_bytes is not None
    for text in (*ODD, TEXT):
        ids = tokenizer.encode([text])[0]
        assert tokenizer.decode(ids) == text
        assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
        assert 0 not in ids, "the document token is the reader's to put, not the text's"
        assert len(tokenizer.starts(text)) == len(ids)


@pytest.mark.parametrize("kind", TRAINED)
def test_training_twice_gives_the_same_tokenizer(kind):
    first, second = (Tokenizer.train([TEXT], 400, kind) for _ in range(2))
    assert first.serialized == second.serialized


@pytest.mark.parametrize("serialized", ["{}", "not json", '{"version": "1.0"}'])
def test_what_is_no_tokenizer_is_refused(serialized):
    with pytest.raises(ConfigError):
        Tokenizer(serialized)
    with pytest.raises(ConfigError, match=r"bpe or unigram or words, or the path"):
        Tokenizer.train(["a"], 300, "words.txt")
    with pytest.raises(ConfigError, match="no tokenizer at nowhere"):
        Tokenizer.read("nowhere.json")


def metaspace() -> Library:
    """Pieces that mark the start of words, as SentencePiece makes them: no bytes, and an unknown token."""
    made = Library(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        [TEXT],
        trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    return made


def words() -> Library:
    made = Library(models.WordLevel(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.train_from_iterator([TEXT], trainers.WordLevelTrainer(vocab_size=80, special_tokens=["<unk>"]))
    made.enable_truncation(3)
    made.enable_padding()
    return made


@pytest.mark.parametrize("made", [metaspace, words])
def test_a_tokenizer_made_elsewhere_has_its_ids_moved_up_by_one(made):
    theirs = made()
    ours = Tokenizer(theirs.to_str())
    theirs.no_truncation()
    theirs.no_padding()
    text = " ".join(TEXT.split()[:60])
    ids = ours.encode([text])[0]
    assert (ids - 1).tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode((ids - 1).tolist(), skip_special_tokens=False)
    assert ours.vocab_size == theirs.get_vocab_size() + 1
    assert ours.token(0) == "<|document|>"
    assert ours.token(int(ids[0])) == theirs.id_to_token(int(ids[0]) - 1)
    assert ours.token_bytes is None


def test_text_of_pieces_streams_with_the_spaces_it_has():
    tokenizer = Tokenizer(metaspace().to_str())
    text = " ".join(TEXT.split()[:40])
    ids = tokenizer.encode([text])[0].tolist()
    for cut in (0, 1, 7, 20):
        stream = TextStream(tokenizer, ids[:cut])
        pieces = [*(stream.add(i) for i in ids[cut:]), stream.end()]
        assert tokenizer.decode(ids[:cut]) + "".join(pieces) == tokenizer.decode(ids)


def tokenizers_of_all_kinds() -> list[Tokenizer]:
    return [*(Tokenizer.train([TEXT], 400, kind) for kind in TRAINED), Tokenizer(metaspace().to_str())]


@pytest.mark.parametrize("tokenizer", tokenizers_of_all_kinds(), ids=[*TRAINED, "metaspace"])
def test_a_prompt_that_ends_in_a_space_is_cut_as_the_text_it_may_become(tokenizer):
    for before, after in [("import", "os"), ("def", "tokenizer(made):"), ("made =", "1"), ("text:", "str"), ("", "a")]:
        cut = tokenizer.prompt(f"{before} ")
        whole = tokenizer.encode([f"{before} {after}"])[0]
        assert whole[: len(cut.ids)].tolist() == cut.ids.tolist()
        if before:
            assert cut.first is None or whole[len(cut.ids)] in cut.first
            assert cut.given == " "
        assert tokenizer.prompt(before).given == ""
        assert tokenizer.prompt(before).first is None
    indented = "def f():\n        "  # spaces before the last are cut from the word in training text too
    cut = tokenizer.prompt(indented)
    assert tokenizer.encode([f"{indented}made"])[0][: len(cut.ids)].tolist() == cut.ids.tolist()


@pytest.mark.parametrize("tokenizer", tokenizers_of_all_kinds(), ids=[*TRAINED, "metaspace"])
def test_pieces_of_a_text_read_as_the_text_does(tokenizer):
    ids = tokenizer.encode(["import os; def made(text) -> None: return"])[0]
    assert "".join(tokenizer.pieces(ids)) == tokenizer.decode(ids)
    assert len(tokenizer.pieces(ids)) == len(ids)
    with_ends = tokenizer.pieces([0, *ids, 0, *ids])
    assert [i for i, piece in enumerate(with_ends) if piece.strip() == "<|document|>"] == [0, len(ids) + 1]
    expected = f"<|document|>{tokenizer.decode(ids)}" * 2
    assert "".join(with_ends).replace(" ", "") == expected.replace(" ", "")


def test_pieces_of_words_have_spaces_between_them_and_around_the_ends_of_documents():
    tokenizer = Tokenizer.train(["the game was lost\nthe end"], 300, "words")
    ids = tokenizer.encode(["the game was\nthe end"])[0]
    assert tokenizer.pieces(ids) == ["the", " game", " was", " <|document|>", " the", " end"]


def test_a_model_is_fitted_with_a_tokenizer_from_a_file(tmp_path: Path, quiet, serial):
    docs = tmp_path / "docs"
    docs.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        (docs / f"{i}.txt").write_text(" ".join(rng.choice(TEXT.split(), size=150)))
    path = tmp_path / "words.json"
    path.write_text(words().to_str())

    def problem(tokenizer: Path) -> LanguageProblem:
        features = {"n_context": 3, "embedding_dims": 24, "n_centers": 10, "tokenizer": str(tokenizer)}
        return LanguageProblem.model_validate(
            {"kind": "language_model", "run": str(tmp_path / "run"), "corpus": {"root": str(docs)},
             "features": features, "solve": {"folds": 2}}
        )  # fmt: skip

    model = fit(problem(path), serial, None, quiet).model
    assert model.vocab_size == 81
    scores = evaluate_documents(model, problem(path).corpus.documents("test"), None)
    assert scores["trigram"].perplexity < scores["uniform"].perplexity
    moved = tmp_path / "moved.json"
    moved.write_bytes(path.read_bytes())
    assert fit(problem(moved), serial, None, quiet).summary.n_rows == 0, "the same tokenizer under another path"
    moved.write_text(metaspace().to_str())
    assert tokenizer_id(str(moved)) != tokenizer_id(str(path))
    with pytest.raises(MismatchError, match="tokenizer"):
        fit(problem(moved), serial, None, quiet)
    with pytest.raises(ValueError, match=r"one of bpe, unigram"):
        LanguageProblem.model_validate({**problem(path).model_dump(), "features": {"tokenizer": "letters"}})
