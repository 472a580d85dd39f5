"""Kneser-Ney estimation against an example by hand, a slow definition, and what a distribution must be."""

import itertools
import logging
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import pytest
from helpers.errors import refused

from flax_wavlm.data.corpora.grammar import draw
from flax_wavlm.data.corpora.sentences import ENGLISH
from flax_wavlm.language_model import counting
from flax_wavlm.language_model.counting import number_words
from flax_wavlm.language_model.kneser_ney import FALLBACK, HIGHEST_ORDER, discounts_of, kneser_ney
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables

Sentences = Sequence[Sequence[str]]
NGram = tuple[str, ...]


class BackOff:
    """What tables say, by Katz's rule, in plain Python."""

    def __init__(self, model: NGramTables):
        self.order = model.order
        self.probs: dict[NGram, float] = {}
        self.backoffs: dict[NGram, float] = {}
        for table in model.tables:
            for ids, prob, backoff in zip(*(array.tolist() for array in table), strict=True):
                ngram = tuple(model.words[id] for id in ids)
                self.probs[ngram], self.backoffs[ngram] = 10**prob, 10**backoff
        self.words = [word for word in model.words if word != BEGIN]

    def prob(self, context: NGram, word: str) -> float:
        context = context[max(0, len(context) - self.order + 1) :]
        if (found := self.probs.get((*context, word))) is not None:
            return found
        return self.backoffs.get(context, 1.0) * self.prob(context[1:], word)

    def perplexity(self, sentences: Sentences) -> float:
        logs = [
            math.log(self.prob((BEGIN, *words[:place]), (*words, END)[place]))
            for words in map(tuple, sentences)
            for place in range(len(words) + 1)
        ]
        return math.exp(-sum(logs) / len(logs))


def model_of(sentences: Sentences, order: int, **settings: Sequence[int]) -> BackOff:
    return BackOff(kneser_ney(number_words(sentences), order, **settings).model)


def random_text(seed: int, sentences: int = 40, words: int = 6) -> list[list[str]]:
    """Sentences of the first letters of the alphabet, the first ones the most usual."""
    rng = random.Random(seed)
    weights = [1 / (1 + place) for place in range(words)]
    return [
        rng.choices("abcdefghij"[:words], weights, k=rng.choice([1, 2, 3, 5, 8])) for _ in range(sentences)
    ]


def split(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("/")]


def test_an_example_by_hand() -> None:
    """2 x "a b", 1 x "a c".

    Words: a follows <s>, b and c follow a, </s> follows b and c. So their adjusted counts are 1, 1, 1 and 2,
    together 5. None is 3, so the discounts are 1/2 and 1. gamma = (3 x 1/2 + 1) / 5 = 1/2, and 5 words
    (<unk>, </s>, a, b, c) share it: 1/10 each.
    Pairs: <s> a 3, a b 2, a c 1, b </s> 2, c </s> 1. So n1 = 2, n2 = 2, n3 = 1, n4 = 0,
    Y = 2 / (2 + 4) = 1/3, D1 = 1 - 2/3 x 2/2 = 1/3, D2 = 2 - 3/3 x 1/2 = 3/2, D3 = 3 - 4/3 x 0/1 = 3.
    """
    found = kneser_ney(number_words(split("a b/a b/a c")), 2)
    assert found.discounts[0] == FALLBACK
    assert found.discounts[1] == pytest.approx((1 / 3, 3 / 2, 3))
    model = BackOff(found.model)
    words = {"a": (1 - 1 / 2) / 5 + 1 / 10, END: (2 - 1) / 5 + 1 / 10, UNKNOWN: 1 / 10}
    words |= {"b": words["a"], "c": words["a"], BEGIN: 1e-99}
    gamma = {BEGIN: 3 / 3, "a": (3 / 2 + 1 / 3) / 3, "b": 3 / 2 / 2, "c": 1 / 3 / 1}
    pairs = {
        (BEGIN, "a"): (3 - 3) / 3 + gamma[BEGIN] * words["a"],
        ("a", "b"): (2 - 3 / 2) / 3 + gamma["a"] * words["b"],
        ("a", "c"): (1 - 1 / 3) / 3 + gamma["a"] * words["c"],
        ("b", END): (2 - 3 / 2) / 2 + gamma["b"] * words[END],
        ("c", END): (1 - 1 / 3) / 1 + gamma["c"] * words[END],
    }
    assert model.probs == pytest.approx({(word,): prob for word, prob in words.items()} | pairs)
    longest = {pair: 1.0 for pair in pairs}
    assert model.backoffs == pytest.approx({(w,): gamma.get(w, 1.0) for w in words} | longest)


class Slow:
    """Chen and Goodman's definition, word by word, in fractions."""

    def __init__(self, sentences: Sentences, order: int, prune: Sequence[int]):
        self.prune = [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]
        marked = [(BEGIN, *sentence, END) for sentence in sentences if sentence]
        self.raw = Counter(
            sentence[i : i + n]
            for n in range(1, order + 1)
            for sentence in marked
            for i in range(len(sentence) - n + 1)
        )
        before = Counter(ngram[1:] for ngram in self.raw if len(ngram) > 1)
        self.adjusted = {
            ngram: count if len(ngram) == order or ngram[0] == BEGIN else before[ngram]
            for ngram, count in self.raw.items()
            if ngram != (BEGIN,)
        }
        self.discounts = [self._discounts(n) for n in range(1, order + 1)]
        self.after: dict[NGram, list[str]] = defaultdict(list)
        for ngram in self.adjusted:
            self.after[ngram[:-1]].append(ngram[-1])
        marks = {(UNKNOWN,), (END,)}
        self.words = [w for (w,) in {g for g in self.adjusted if len(g) == 1 and self._kept(g)} | marks]

    def _discounts(self, n: int) -> list[Fraction]:
        numbers = Counter(count for ngram, count in self.adjusted.items() if len(ngram) == n)
        if not (numbers[1] and numbers[2] and numbers[3]):
            return [Fraction(0), *map(Fraction, FALLBACK)]
        y = Fraction(numbers[1], numbers[1] + 2 * numbers[2])
        found = [k - (k + 1) * y * Fraction(numbers[k + 1], numbers[k]) for k in (1, 2, 3)]
        return [Fraction(0), *(found if min(found) > 0 else map(Fraction, FALLBACK))]

    def _kept(self, ngram: NGram) -> bool:
        special = len(ngram) == 1 and ngram[0] in (UNKNOWN, END)
        return special or self.raw[ngram] > self.prune[len(ngram) - 1]

    def prob(self, context: NGram, word: str) -> Fraction:
        context = context[max(0, len(context) - len(self.discounts) + 1) :]
        lower = self.prob(context[1:], word) if context else Fraction(1, len(self.words))
        if not self.after[context]:
            return lower
        total, freed, own = 0, Fraction(0), Fraction(0)
        for other in self.after[context]:
            count = self.adjusted[*context, other]
            discount = self.discounts[len(context)][min(count, 3)]
            total += count
            kept = self._kept((*context, other))
            freed += discount if kept else count
            own += count - discount if kept and other == word else 0
        return (own + freed * lower) / total


CASES = [
    *((seed, order, ()) for seed, order in enumerate([1, 2, 3, 4, 5])),
    *((10 + seed, 3, prune) for seed, prune in enumerate([(0, 0, 1), (0, 1), (0, 1, 2), (2,), (1, 1, 3)])),
    (20, 5, (0, 0, 1, 1, 2)),
]


@pytest.mark.parametrize(("seed", "order", "prune"), CASES)
def test_it_is_the_slow_definition_and_sums_to_one(seed: int, order: int, prune: tuple[int, ...]) -> None:
    text = random_text(seed)
    model, slow = model_of(text, order, prune=prune), Slow(text, order, prune)
    assert sorted(model.words) == sorted(slow.words)
    contexts = [c for n in range(order) for c in itertools.product([*model.words, "never"], repeat=n)]
    contexts += [(BEGIN, *context) for context in contexts if len(context) < order - 1]
    for context in random.Random(seed).sample(contexts, min(len(contexts), 60)):
        found = [model.prob(context, word) for word in model.words]
        assert sum(found) == pytest.approx(1, abs=1e-12), context
        slowly = [float(slow.prob(context, word)) for word in model.words]
        assert found == pytest.approx(slowly, rel=1e-12), context


def test_what_is_pruned() -> None:
    text = random_text(3, sentences=100)
    whole, cut = model_of(text, 3), model_of(text, 3, prune=(0, 1, 2))
    occurs = Counter(
        (BEGIN, *s, END)[i : i + n] for s in text for n in (1, 2, 3) for i in range(len(s) + 3 - n)
    )
    assert set(whole.probs) - set(cut.probs) == {
        ngram for ngram in whole.probs if occurs[ngram] <= (0, 1, 2)[len(ngram) - 1] and len(ngram) > 1
    }
    contexts = {ngram[:-1] for ngram in cut.probs} | {ngram[1:] for ngram in cut.probs}
    assert contexts - {()} <= set(cut.probs)


def test_rare_words_are_unknown() -> None:
    text = number_words(split("b a a/a c/a b"), min_count=2)
    assert text.words == (UNKNOWN, BEGIN, END, "b", "a")
    assert " ".join(text.words[id] for id in text.ids) == "<s> b a a </s> <s> a <unk> </s> <s> a b </s>"
    assert text.sentences == 3
    model = BackOff(kneser_ney(text, 2).model)
    assert sum(model.prob((UNKNOWN,), word) for word in model.words) == pytest.approx(1)
    assert model.prob((UNKNOWN,), END) > 0.5 > model.prob(("b",), END)


def commands(seed: int, count: int) -> list[list[str]]:
    """Sentences of the demo's grammar, each once."""
    numbers = draw(np.random.default_rng(seed), count, 25_600)
    return [ENGLISH.spell(ENGLISH.templates, one).lower().rstrip(".").split() for one in numbers]


def test_a_longer_context_and_smoothing_help_on_unseen_sentences() -> None:
    """The grammar's choices, and its end, give (4^4 x 100)^(1/7) for each word: no model can do better."""
    text = commands(0, 700)
    seen, unseen = text[:600], text[600:]
    by_order = [model_of(seen, order).perplexity(unseen) for order in (1, 2, 3)]
    assert by_order[0] > 2 * by_order[1] > 2 * by_order[2] > 2 * 25_600 ** (1 / 7)
    assert by_order[2] < 1.25 * 25_600 ** (1 / 7)
    slow = Slow(seen, 3, ())

    def one_added(context: NGram, word: str) -> float:
        times = slow.raw[*context, word] + 1
        return times / (sum(slow.raw[*context, other] for other in slow.after[context]) + len(slow.words))

    model = model_of(seen, 3)
    model.prob = lambda context, word: one_added(context[-2:], word)  # type: ignore[method-assign]
    assert model.perplexity(unseen) > 1.2 * by_order[2]


@pytest.mark.parametrize(("prune", "ngrams", "perplexity"), [((), 129, 7.8883202), ((0, 2), 99, 7.9734096)])
def test_it_is_what_lmplz_gives(prune: tuple[int, ...], ngrams: int, perplexity: float) -> None:
    """KenLM's lmplz, with --discount_fallback, gave these for the same text."""
    found = kneser_ney(number_words(random_text(5, 300, 10)), 2, prune=prune)
    model = BackOff(found.model)
    assert found.discounts == (FALLBACK, pytest.approx((0.5, 0.65, 1)))
    assert len(model.probs) == ngrams
    assert model.perplexity(random_text(6, 100, 10)) == pytest.approx(perplexity, rel=1e-7)


def test_discounts_that_cannot_be_are_said(caplog: pytest.LogCaptureFixture) -> None:
    def of_counts(*numbers: int) -> list[float]:
        return discounts_of(np.repeat(np.arange(len(numbers)), numbers), 2).tolist()

    with caplog.at_level(logging.WARNING):
        assert of_counts(7, 4, 2, 1, 0) == pytest.approx([0, 0.5, 1.25, 3])
        assert not caplog.records
        for numbers, said in (
            ((0, 0, 3, 1, 1), "2-grams are not determined, as 0, 3, 1 and 1 of them"),
            ((0, 3, 0, 1, 1), "2-grams are not determined, as 3, 0, 1 and 1 of them"),
            ((0, 4, 1, 4, 0), r"would be 0.667, -6, 3, as 4, 1, 4 and 0 of them"),
            ((0, 2, 2, 4, 1, 9), r"would be 0.333, 0, 2.67"),  # 0: nothing would be left for other words
        ):
            caplog.clear()
            assert of_counts(*numbers) == [0, 0.5, 1, 1.5]
            assert said in caplog.text
            assert "0.5, 1 and 1.5 are taken" in caplog.text


@pytest.mark.parametrize("order", [1, 2, 5])
def test_small_texts(order: int) -> None:
    model = model_of([["a"] * 4], order)
    for context in [(), (BEGIN,), ("a", "a", "a"), ("b",)]:
        assert sum(model.prob(context, word) for word in model.words) == pytest.approx(1)


def test_settings_that_cannot_be() -> None:
    text = number_words(split("a b/a b/a c/d"))
    for order in (0, -1, HIGHEST_ORDER + 1):
        with refused(field="order", found=order, expected=f"1 to {HIGHEST_ORDER}"):
            kneser_ney(text, order)
    with refused(field="order", found=5, expected="at most 4: the longest sentence has 4 words"):
        kneser_ney(text, 5)
    for prune in ([0, 2, 1], [-1], [0, 0, 0, 0]):
        with refused(field="prune", found=prune, expected="at most 3 numbers from 0"):
            kneser_ney(text, 3, prune=prune)
    with refused("no 3-gram occurs more than 9 times", field="prune", expected="an order of 2"):
        kneser_ney(text, 3, prune=[0, 0, 9])


def test_texts_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused("no words"):
        number_words([[], []])
    for mark in (BEGIN, END):
        with refused("is among the words"):
            number_words([["a"], ["a", mark]])
    monkeypatch.setattr(counting, "MOST_WORDS", 10)
    number_words([["a"] * 8])
    with refused("the text has 11 words", expected="at most 10"):
        number_words([["a"] * 9])


def test_memory_is_asked_for_before(monkeypatch: pytest.MonkeyPatch) -> None:
    text = number_words(commands(0, 100))

    def with_free(count: float) -> None:
        monkeypatch.setattr(counting, "held_bytes", lambda: 10**9)
        monkeypatch.setattr(counting, "machine_bytes", lambda: 10**9 + int(count))

    with_free(1e6)
    kneser_ney(text, 2)
    with_free(40_000)
    with refused("counting the 2-grams of 800 words: .* GB of memory are needed beside 1 GB"):
        kneser_ney(text, 2)
    with_free(50_000)  # enough for counting
    with refused("the probabilities of 29 1-grams, .* 5-grams: .* GB of memory", do="less text"):
        kneser_ney(text, 5)
    monkeypatch.setattr(counting, "_FIRST_CHECK", 1000)
    read = iter(commands(0, 2000))
    with refused("words, and there are more"):
        number_words(read)
    assert len(list(read)) > 1000


def test_sentences_are_read_one_by_one() -> None:
    def sentences() -> Iterator[Iterator[str]]:
        for words in ("a b", "", "a"):
            yield iter(words.split())

    assert number_words(sentences()).ids.tolist() == [1, 3, 4, 2, 1, 3, 2]
