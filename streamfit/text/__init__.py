"""Closed-form language models: tokens, contexts, embeddings, n-grams, and the mixture of them."""

from streamfit.text.evaluate import Evaluator, Score, add_scores
from streamfit.text.fit import LanguageSettings, assemble, prepare, token_source
from streamfit.text.generate import Sampling, generate, generate_text
from streamfit.text.model import LanguageModel
from streamfit.text.tokenizer import TRAINED, Tokenizer, tokenizer_id

__all__ = [
    "TRAINED",
    "Evaluator",
    "LanguageModel",
    "LanguageSettings",
    "Sampling",
    "Score",
    "Tokenizer",
    "add_scores",
    "assemble",
    "generate",
    "generate_text",
    "prepare",
    "token_source",
    "tokenizer_id",
]
