"""Closed-form language models: tokens, contexts, embeddings, n-grams, and the mixture of them."""

from streamfit.text.adapt import Adaptive
from streamfit.text.doubt import Doubt
from streamfit.text.evaluate import Evaluator, Score, add_scores
from streamfit.text.experts import ExpertSettings
from streamfit.text.explain import Explanation, explain
from streamfit.text.fit import LanguageSettings, assemble, prepare, token_source
from streamfit.text.generate import Sampling, generate, generate_text
from streamfit.text.model import LanguageModel
from streamfit.text.origins import find_origins, origins_of
from streamfit.text.tokenizer import TRAINED, Tokenizer, tokenizer_id

__all__ = [
    "TRAINED",
    "Adaptive",
    "Doubt",
    "Evaluator",
    "ExpertSettings",
    "Explanation",
    "LanguageModel",
    "LanguageSettings",
    "Sampling",
    "Score",
    "Tokenizer",
    "add_scores",
    "assemble",
    "explain",
    "find_origins",
    "generate",
    "generate_text",
    "origins_of",
    "prepare",
    "token_source",
    "tokenizer_id",
]
