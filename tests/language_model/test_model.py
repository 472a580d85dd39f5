"""The automaton of an n-gram model against the definition of back-off."""

import numpy as np
import pytest
from helpers.ngrams import entries, log10_prob, random_model

from flax_wavlm.language_model.model import EMPTY, NGramModel, advance
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table

WORDS = (UNKNOWN, BEGIN, END, "a", "b")
BY_HAND = NGramTables(
    WORDS,
    (
        Table(
            np.arange(5, dtype=np.int32)[:, None],
            np.array([-2.0, -99.0, -1.0, -0.5, -0.25]),
            np.array([0.0, -0.125, 0.0, -0.5, -0.75]),
        ),
        Table(np.array([[1, 3], [3, 4]], np.int32), np.array([-0.1, -0.2]), np.array([-0.3, -0.4])),
        Table(np.array([[1, 3, 4]], np.int32), np.array([-0.05]), np.array([0.0])),
    ),
)


@pytest.mark.parametrize(
    ("sentence", "log10"),
    [
        (["a", "b"], -0.1 - 0.05 + (-0.4 - 0.75 - 1.0)),  # </s> after "a b", then after "b"
        (["b"], (-0.125 - 0.25) + (-0.75 - 1.0)),
        (["a", "a"], -0.1 + (-0.3 - 0.5 - 0.5) + (-0.5 - 1.0)),
        (["other"], (-0.125 - 2.0) - 1.0),
        ([], -0.125 - 1.0),
    ],
)
def test_values_by_hand(sentence: list[str], log10: float) -> None:
    assert NGramModel.of(BY_HAND).score(sentence) / np.log(10) == pytest.approx(log10, abs=1e-6)


def test_a_part_of_a_sentence_has_no_ends() -> None:
    model = NGramModel.of(BY_HAND)
    assert model.score(["a", "b"], begin=False, end=False) / np.log(10) == pytest.approx(-0.7, abs=1e-6)
    assert (model.order, model.ids["b"]) == (3, 4)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("contexts", "ends"), [(1.0, 1.0), (0.4, 1.0), (1.0, 0.4), (0.3, 0.3)])
def test_scores_are_those_of_the_definition(order: int, contexts: float, ends: float) -> None:
    tables = random_model(order, order, share=0.4 if order < 4 else 0.25, contexts=contexts, ends=ends)
    by_definition, model = entries(tables), NGramModel.of(tables)
    known = [place for place in range(len(tables.words)) if place != 1]
    random = np.random.default_rng(0)
    for begin in (True, False):
        history = (BEGIN,) if begin else ()
        state = model.begin if begin else EMPTY
        for _ in range(100):
            word = int(random.choice(known))
            found, state = advance(model.automaton, state, word)
            context = history[-(order - 1) :] if order > 1 else ()
            expected = log10_prob(by_definition, context, tables.words[word])
            assert found / np.log(10) == pytest.approx(expected, abs=1e-5)
            history += (tables.words[word],)


def test_an_ngram_that_says_nothing_more_is_no_state() -> None:
    """Of the bigrams here, "<s> a" goes on and "a b" has a weight; "b a" says what "a" says."""
    one, two, three = BY_HAND.tables
    two = Table(np.array([[1, 3], [3, 4], [4, 3]], np.int32), *(np.append(x, 0.0) for x in two[1:]))
    model = NGramModel.of(NGramTables(WORDS, (one, two, three)))
    after_a = advance(model.automaton, EMPTY, 3)[1]
    after_b = advance(model.automaton, after_a, 4)[1]
    assert after_b not in (EMPTY, advance(model.automaton, EMPTY, 4)[1])
    assert advance(model.automaton, after_b, 3)[1] == after_a
    after_three = advance(model.automaton, advance(model.automaton, model.begin, 3)[1], 4)[1]
    assert after_three == after_b
    assert advance(model.automaton, EMPTY, model.ids[END])[1] == EMPTY
