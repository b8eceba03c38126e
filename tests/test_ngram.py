"""N-gram counts obey the laws of a sum; Kneser-Ney equals a naive transcription of its formula."""

import itertools
import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfit.errors import ConfigError, MismatchError
from streamfit.text.kneser_ney import KneserNey
from streamfit.text.ngram import NgramCounts

DOCUMENT = 0  # the token that ends a document and pads the context at its start
VOCAB = 7

TEXT = """
the cat sat on the mat and the dog sat on the log
the dog saw the cat and the cat saw the dog
on the mat the cat slept and on the log the dog slept
a bird sang in the tree and the cat heard the bird
the bird saw the cat and the bird flew to the tree on the hill
when the dog heard the bird the dog ran to the tree
the cat sat in the tree and the dog sat on the hill
at night the cat slept on the mat and the dog slept on the log
in the morning the bird sang and the dog ran and the cat sat on the wall
the old man fed the dog and the old man fed the cat
the cat and the dog and the bird sat on the hill in the morning
a dog and a cat ran to the old man and the old man sat on the wall
the man saw the bird in the tree and the bird saw the man on the wall
"""
HELD_OUT = """
the dog sat on the mat and the cat slept on the wall
in the morning the old man saw the cat in the tree
the bird sang on the hill and the cat heard the dog
"""

documents = st.lists(st.lists(st.integers(1, VOCAB - 1), max_size=12), max_size=6)
orders = st.integers(1, 4)


def rows_of(docs, order):
    """Contexts and tokens of documents, each ended by and padded with the document token."""
    rows = []
    for doc in docs:
        padded = [DOCUMENT] * (order - 1) + list(doc) + [DOCUMENT]
        rows += [padded[i : i + order] for i in range(len(doc) + 1)]
    table = np.array(rows, np.int64).reshape(-1, order)
    return table[:, :-1], table[:, -1]


def count(docs, order, vocab_size=VOCAB):
    return NgramCounts.from_rows(*rows_of(docs, order), vocab_size)


def all_contexts(vocab_size, width):
    table = list(itertools.product(range(vocab_size), repeat=width))
    return np.array(table, np.int64).reshape(vocab_size**width, width)


def real_text():
    lines = [line.split() for line in TEXT.strip().splitlines()]
    held_out = [line.split() for line in HELD_OUT.strip().splitlines()]
    words = sorted({word for line in lines + held_out for word in line} | {"never-seen"})
    ids = {word: i for i, word in enumerate(words, start=1)}
    encode = [[[ids[word] for word in line] for line in part] for part in (lines, held_out)]
    return encode[0], encode[1], len(words) + 1


class NaiveKneserNey:
    """The formula as it is written in Chen and Goodman, with dictionaries and recursion.

    Documents begin with one `<s>`, as KenLM writes it: what begins with it has no left neighbours and keeps its count.
    Without `starts` a document begins with padding, a left neighbour like any other.
    """

    def __init__(self, docs, order, vocab_size, *, starts=True):
        self.vocab_size, self.starts = vocab_size, starts
        self.counts = {k: Counter() for k in range(1, order + 1)}
        left = defaultdict(set)
        for doc in docs:
            told = ["<s>"] if starts else [DOCUMENT] * (order - 1)
            words = [*told, *doc, DOCUMENT]
            for end in range(len(told), len(words)):
                for k in range(1, min(order, end + 1) + 1):
                    gram = tuple(words[end - k + 1 : end + 1])
                    self.counts[k][gram] += 1
                    if end - k >= 0:
                        left[gram].add(words[end - k])
        for k in range(1, order):
            for gram in self.counts[k]:
                if gram[0] != "<s>":
                    self.counts[k][gram] = len(left[gram])
        self.discounts = {k: self.discount(table) for k, table in self.counts.items()}

    @staticmethod
    def discount(table):
        n = Counter(table.values())
        try:
            y = n[1] / (n[1] + 2 * n[2])
            found = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        except ZeroDivisionError:
            return [0.5, 1.0, 1.5]
        valid = n[3] and all(0 < d <= j for j, d in enumerate(found, start=1))
        return found if valid else [0.5, 1.0, 1.5]

    def probability(self, context, token):
        """Of a token after padded tokens, as rows have them."""
        k = len(context) + 1
        if self.starts and context[:2] == (DOCUMENT, DOCUMENT):
            return self.probability(context[1:], token)
        lower = self.probability(context[1:], token) if context else 1 / self.vocab_size
        followers = self.followers(context)
        if token not in followers:
            return self.weight(context) * lower
        seen = followers[token] - self.discounts[k][min(followers[token], 3) - 1]
        return seen / sum(followers.values()) + self.weight(context) * lower

    def followers(self, context):
        """Tokens after a context of rows, with their counts."""
        if self.starts and context[:1] == (DOCUMENT,):
            context = ("<s>", *context[1:])
        return {g[-1]: a for g, a in self.counts.get(len(context) + 1, {}).items() if g[:-1] == context}

    def weight(self, context):
        """Weight of the shorter context; 1 where this one was not seen."""
        counts = self.followers(context).values()
        taken = [self.discounts[len(context) + 1][min(a, 3) - 1] for a in counts]
        return sum(taken) / sum(counts) if counts else 1.0


@given(documents, documents, documents, orders)
def test_counts_add_like_numbers(a, b, c, order):
    a, b, c = (count(docs, order) for docs in (a, b, c))
    zeros = NgramCounts.zeros(order, VOCAB)
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + zeros == a == zeros + a
    assert (a + b) - b == a
    assert a - a == zeros


@given(documents, documents, orders)
def test_counts_of_a_concatenation_are_the_sum(a, b, order):
    assert count(a + b, order) == count(a, order) + count(b, order)


@given(documents, orders)
def test_counts_equal_a_dictionary_of_rows(docs, order):
    contexts, tokens = rows_of(docs, order)
    expected = Counter((*map(int, c), int(w)) for c, w in zip(contexts, tokens, strict=True))
    counts = count(docs, order)
    assert list(map(tuple, counts.grams.tolist())) == sorted(expected)
    assert counts.counts.tolist() == [expected[gram] for gram in sorted(expected)]


@given(documents, orders, st.data())
def test_lower_counts_are_those_of_shorter_rows(docs, order, data):
    shorter = data.draw(st.integers(1, order))
    assert count(docs, order).lower(shorter) == count(docs, shorter)


@pytest.mark.parametrize("order", [3, 9, 40])
def test_keys_wider_than_63_bits_change_nothing(order):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, (500, order))
    wide = 2**31 // 3
    narrow = NgramCounts.from_rows(rows[:, :-1], rows[:, -1], 3)
    spread = NgramCounts.from_rows(rows[:, :-1] * wide, rows[:, -1] * wide, 2**31)
    np.testing.assert_array_equal(spread.grams, narrow.grams * wide)
    np.testing.assert_array_equal(spread.counts, narrow.counts)
    small, big = KneserNey.fit(narrow), KneserNey.fit(spread)
    for a, b in zip(small.levels, big.levels, strict=True):
        np.testing.assert_array_equal(a.mass, b.mass)
        np.testing.assert_array_equal(a.gamma, b.gamma)
    for a, b in zip(small.support(rows), big.support(rows * wide), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.uint64])
def test_ids_of_any_integer_type(dtype):
    contexts, tokens = rows_of([[1, 200, 3, 200], [200, 3]], 3)
    narrow, narrow_tokens = contexts.astype(dtype), tokens.astype(dtype)
    counts = NgramCounts.from_rows(contexts, tokens, 256)
    assert NgramCounts.from_rows(narrow, narrow_tokens, 256) == counts
    model = KneserNey.fit(counts)
    np.testing.assert_array_equal(model.distribution(narrow), model.distribution(contexts))
    np.testing.assert_array_equal(model.probability(narrow, narrow_tokens), model.probability(contexts, tokens))


@settings(deadline=None)
@given(documents, orders)
def test_rows_are_positive_and_normalised_for_every_context(docs, order):
    model = KneserNey.fit(count(docs, order))
    p = model.distribution(all_contexts(VOCAB, order - 1))
    assert p.dtype == np.float32
    assert p.shape == (VOCAB ** (order - 1), VOCAB)
    assert p.min() > 0
    np.testing.assert_allclose(p.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


def test_packed_counts_are_small_and_the_same():
    for vocab_size, repeats, size in ((200, 3, 1), (300, 300, 2), (70_000, 70_000, 4)):
        contexts, tokens = np.zeros((repeats, 1), np.int32), np.full(repeats, vocab_size - 1)
        counts = NgramCounts.from_rows(contexts, tokens, vocab_size)
        packed = counts.packed()
        assert {array.dtype.itemsize for array in packed.values()} == {size}
        assert NgramCounts.unpacked(2, vocab_size, packed["grams"], packed["counts"]) == counts
    assert NgramCounts.unpacked(3, 9, **NgramCounts.zeros(3, 9).packed()) == NgramCounts.zeros(3, 9)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "docs",
    [[], [[]], [[1]], [[1] * 50], [[1, 2] * 20], [[1, 2, 3]] * 9],
    ids=["nothing", "empty", "one-token", "constant", "periodic", "repeated"],
)
def test_degenerate_corpora(docs, order):
    model, naive = KneserNey.fit(count(docs, order)), NaiveKneserNey(docs, order, VOCAB)
    contexts = all_contexts(VOCAB, order - 1)
    expected = [[naive.probability(tuple(c), w) for w in range(VOCAB)] for c in contexts.tolist()]
    np.testing.assert_allclose(model.distribution(contexts), expected, rtol=1e-6)


@pytest.mark.parametrize("padding", [0, None])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_the_naive_formula_on_text(order, padding):
    docs, held_out, vocab_size = real_text()
    model = KneserNey.fit(count(docs, order, vocab_size), padding=padding)
    naive = NaiveKneserNey(docs, order, vocab_size, starts=padding == 0)
    contexts = np.unique(rows_of(docs[::3] + held_out, order)[0], axis=0)
    for token in range(vocab_size):
        expected = [naive.probability(tuple(c), token) for c in contexts.tolist()]
        p = model.probability(contexts, np.full(len(contexts), token))
        np.testing.assert_allclose(p, expected, rtol=1e-9)


def test_starts_of_documents_are_those_of_the_reference_toolkit():
    """By hand, of the lines `a a b a` and `b a a b`, whose few n-grams take the fall-back discounts at every order."""
    a, b, vocab_size = 1, 2, 4  # and one word that is not in the text
    model = KneserNey.fit(count([[a, a, b, a], [b, a, a, b]], 3, vocab_size))
    # Left neighbours: three of a (<s>, a, b), two of b and of the end; discounts of 1.5, 1 and 1 of 7 go to the words.
    unigram = {a: 1.5 / 7 + 3.5 / 7 / 4, b: 1 / 7 + 3.5 / 7 / 4}
    after_start = {w: (1 - 0.5) / 2 + (0.5 + 0.5) / 2 * unigram[w] for w in (a, b)}  # each once, a raw count
    # <s> a comes once, and a after it: a raw count of 1 above the pair a a, whose left neighbours are <s> and b.
    pair = (2 - 1) / 4 + (1 + 0.5 + 0.5) / 4 * unigram[a]  # after a: a (2 neighbours), b (1), the end (1)
    expected = [after_start[a], after_start[b], (1 - 0.5) / 1 + 0.5 / 1 * pair]
    got = model.probability(np.array([[0, 0], [0, 0], [0, a]]), np.array([a, b, a]))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_text_uses_the_formula_and_the_fall_back():
    # Otherwise the comparison with the naive model would leave one of the two unproved.
    docs, _, vocab_size = real_text()
    levels = KneserNey.fit(count(docs, 3, vocab_size)).discounts
    fell_back = [level.tolist() == [0.5, 1.0, 1.5] for level in levels]
    assert not all(fell_back)
    tiny = KneserNey.fit(count(docs[:1], 3, vocab_size)).discounts
    assert any(level.tolist() == [0.5, 1.0, 1.5] for level in tiny)


@given(documents, orders, st.integers(0, 2**32 - 1))
def test_probability_is_an_entry_of_distribution(docs, order, seed):
    model = KneserNey.fit(count(docs, order))
    rng = np.random.default_rng(seed)
    contexts, tokens = rng.integers(0, VOCAB, (20, order + 1)), rng.integers(0, VOCAB, 20)
    p = model.distribution(contexts)[np.arange(20), tokens]
    np.testing.assert_allclose(model.probability(contexts, tokens), p, rtol=1e-6)


def test_many_rows_equal_one_row_at_a_time():
    rng = np.random.default_rng(1)
    stream = rng.zipf(1.3, 60_000) % 500
    rows = np.lib.stride_tricks.sliding_window_view(stream, 3)
    model = KneserNey.fit(NgramCounts.from_rows(rows[:, :-1], rows[:, -1], 500))
    contexts = rows[:3000, 1:]  # enough seen continuations for several rounds of scattering
    p = model.distribution(contexts)
    np.testing.assert_allclose(p.sum(axis=1, dtype=np.float64), 1, atol=1e-5)
    for i in range(0, 3000, 250):
        np.testing.assert_array_equal(p[i : i + 1], model.distribution(contexts[i : i + 1]))


@given(documents, orders)
def test_support_is_the_longest_seen_suffix(docs, order):
    model = KneserNey.fit(count(docs, order))
    rows = [tuple(row) for row in rows_of(docs, order)[0].tolist()]
    contexts = all_contexts(VOCAB, order - 1)[::3]
    length, total = model.support(contexts)
    for context, got in zip(contexts.tolist(), zip(length, total, strict=True), strict=True):
        suffixes = [tuple(context[order - 1 - m :]) for m in range(order)]
        seen = [sum(row[order - 1 - m :] == suffix for row in rows) for m, suffix in enumerate(suffixes)]
        longest = max((m for m in range(order) if seen[m]), default=0)
        assert got == (longest, seen[longest])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_beats_add_one_on_held_out_text(order):
    docs, held_out, vocab_size = real_text()
    counts = count(docs, order, vocab_size)
    contexts, tokens = rows_of(held_out, order)
    kneser_ney = np.log2(KneserNey.fit(counts).probability(contexts, tokens)).mean()
    table = {tuple(g): int(a) for g, a in zip(counts.grams.tolist(), counts.counts, strict=True)}
    after = Counter()
    for gram, a in table.items():
        after[gram[:-1]] += a
    rows = [(*c, w) for c, w in zip(contexts.tolist(), tokens.tolist(), strict=True)]
    add_one = [math.log2((table.get(r, 0) + 1) / (after[r[:-1]] + vocab_size)) for r in rows]
    # A unigram gains little from smoothing; from order 2 on the lower orders must pay.
    assert kneser_ney > np.mean(add_one) + (0.3 if order > 1 else -0.05)


def test_higher_orders_pay_on_held_out_text():
    docs, held_out, vocab_size = real_text()
    scores = [
        np.log2(KneserNey.fit(count(docs, order, vocab_size)).probability(*rows_of(held_out, order))).mean()
        for order in (1, 2, 3)
    ]
    assert scores == sorted(scores)


@pytest.mark.parametrize("bad", [-1, VOCAB])
def test_ids_outside_the_vocabulary(bad):
    good, wrong = np.array([[1], [2]]), np.array([[1], [bad]])
    model = KneserNey.fit(NgramCounts.from_rows(good, good[:, 0], VOCAB))
    for contexts, tokens in ((wrong, good[:, 0]), (good, wrong[:, 0])):
        with pytest.raises(ConfigError, match="use the vocabulary"):
            NgramCounts.from_rows(contexts, tokens, VOCAB)
        with pytest.raises(ConfigError, match="use the vocabulary"):
            model.probability(contexts, tokens)
    with pytest.raises(ConfigError, match="use the vocabulary"):
        model.distribution(wrong)
    with pytest.raises(ConfigError, match="use the vocabulary"):
        model.support(wrong)


def test_wrong_shapes_types_and_orders():
    contexts, tokens = rows_of([[1, 2, 3]], 3)
    model = KneserNey.fit(count([[1, 2, 3]], 3))
    with pytest.raises(ConfigError, match="shape"):
        NgramCounts.from_rows(contexts, tokens[:-1], VOCAB)
    with pytest.raises(ConfigError, match="integer"):
        NgramCounts.from_rows(contexts.astype(float), tokens, VOCAB)
    with pytest.raises(ConfigError, match="m >= 2"):
        model.distribution(contexts[:, :1])
    with pytest.raises(ConfigError, match="1 to 3"):
        count([[1]], 3).lower(4)
    with pytest.raises(ConfigError, match="order 0"):
        NgramCounts.zeros(0, VOCAB)
    ones = np.ones(2, np.int64)
    for grams in ([[2, 1], [1, 2]], [[1, 2], [1, 2]]):
        with pytest.raises(ConfigError, match="unsorted"):
            NgramCounts(2, VOCAB, np.array(grams, np.int32), ones)
    with pytest.raises(ConfigError, match="int32"):
        NgramCounts(2, VOCAB, np.array([[1, 2], [2, 1]]), ones)
    with pytest.raises(ConfigError, match="shapes"):
        NgramCounts(3, VOCAB, np.array([[1, 2], [2, 1]], np.int32), ones)


def test_counts_that_do_not_belong_together():
    counts = count([[1, 2]], 2)
    with pytest.raises(MismatchError, match="same configuration"):
        counts + count([[1, 2]], 3)
    with pytest.raises(MismatchError, match="same configuration"):
        counts - count([[1, 2]], 2, VOCAB + 1)
    with pytest.raises(MismatchError, match="a count of -1"):
        counts - count([[1, 2], [1, 2]], 2)
    assert counts != "counts"
