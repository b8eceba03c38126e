"""Closed-form language models: tokens, contexts, embeddings, n-grams, and the mixture of them."""

from streamfit.text.evaluate import Evaluator, Score, add_scores
from streamfit.text.fit import LanguageSettings, assemble, prepare, token_source
from streamfit.text.model import LanguageModel
from streamfit.text.tokenizer import Tokenizer

__all__ = [
    "Evaluator",
    "LanguageModel",
    "LanguageSettings",
    "Score",
    "Tokenizer",
    "add_scores",
    "assemble",
    "prepare",
    "token_source",
]
