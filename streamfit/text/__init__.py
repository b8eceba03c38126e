"""Closed-form language models: tokens, contexts, embeddings, n-grams, and the mixture of them."""
