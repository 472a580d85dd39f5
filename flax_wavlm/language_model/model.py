"""The log-probability of a word after others, by a back-off n-gram model.

The model is an automaton. A state stands for the longest end of what was said that is an n-gram of the model,
so it says all that the next word's probability depends on. A word leads from a state to the next one, with
its log-probability. The beam search calls `advance`, so it is compiled by numba.

An n-gram that nothing follows in the model, and that has no back-off weight, is no state: a shorter end of it
says the same. So none of the longest n-grams is one, and fewer are looked up in vain.

    N  n-grams: the empty one, then every other, shorter ones first       S  those shorter than the longest
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from flax_wavlm.errors import UserError
from flax_wavlm.language_model.compiled import VACANT, compiled, hash_table, slot
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables, Table

EMPTY = 0  # the state in which nothing is known of what was said
MOST_NGRAMS = 2**31 - 2  # states are int32; a state times the words, which are fewer, then fits int64
_NOWHERE = -1


class Automaton(NamedTuple):
    """The arrays that `advance` reads: 40 to 64 bytes for an n-gram, 32 to 56 for one of the longest."""

    log_probs: np.ndarray  # float32 [N], natural logarithms: of an n-gram's last word after the others
    after: np.ndarray  # int32 [N], the state after the n-gram
    backoffs: np.ndarray  # float32 [S], natural logarithms
    shorter: np.ndarray  # int32 [S], the state of the longest shorter end of the n-gram
    keys: np.ndarray  # int64, of a hash table: state * W + word
    places: np.ndarray  # int32, beside `keys`: the n-gram that the state's words and this word are
    words: int  # W


@compiled
def advance(automaton: Automaton, state: int, word: int) -> tuple[float, int]:
    """The natural log-probability of a word (its place in the vocabulary), and the state after it."""
    total = 0.0
    while state != EMPTY:
        at = slot(automaton.keys, state * automaton.words + word)
        if automaton.keys[at] != VACANT:
            found = automaton.places[at]
            return total + automaton.log_probs[found], automaton.after[found]
        total += automaton.backoffs[state]
        state = automaton.shorter[state]
    return total + automaton.log_probs[1 + word], automaton.after[1 + word]


@compiled
def _find(automaton: Automaton, ngram: np.ndarray) -> Any:
    """The place of an n-gram; `_NOWHERE` where the model has none."""
    place = 1 + np.int64(ngram[0])
    for word in ngram[1:]:
        at = slot(automaton.keys, place * automaton.words + word)
        if automaton.keys[at] == VACANT:
            return _NOWHERE
        place = np.int64(automaton.places[at])
    return place


@compiled
def _insert(automaton: Automaton, goes_on: np.ndarray, ids: np.ndarray, first: int) -> bool:
    """Enters the n-grams `ids` [N, n], n >= 2, which are numbered from `first`. Shorter ones are there.

    Contexts are noted in `goes_on`, which is boolean. A log-probability that is NaN becomes the one that
    backing off gives. False where a context is missing; the work is then not done.
    """
    words, length = automaton.words, ids.shape[1]
    for i in range(len(ids)):
        context: Any = _find(automaton, ids[i, :-1])
        word: Any = np.int64(ids[i, -1])
        if context == _NOWHERE:
            return False
        goes_on[context] = True
        if np.isnan(automaton.log_probs[first + i]):
            automaton.log_probs[first + i], _ = advance(automaton, context, word)
        at = slot(automaton.keys, context * words + word)
        automaton.keys[at], automaton.places[at] = context * words + word, first + i
        for begin in range(1, length):
            found = _find(automaton, ids[i, begin:])
            if found != _NOWHERE:
                automaton.shorter[first + i] = found
                break
    return True


@dataclass(frozen=True)
class NGramModel:
    """An n-gram model that can be asked; made by `of`.

    Attributes:
        words: the vocabulary.
        order: how many words the longest n-grams have.
        automaton: for `advance`.
    """

    words: tuple[str, ...]
    order: int
    automaton: Automaton

    @classmethod
    def of(cls, model: NGramTables) -> NGramModel:
        """The automaton of tables. A million n-grams take less than a second.

        The context of each n-gram is an n-gram too, but in files of pruned models some may be missing. They
        are entered, which changes no probability.
        """
        automaton = _automaton(model)
        if automaton is None:
            automaton = _automaton(_with_contexts(model))
        assert automaton is not None
        return cls(model.words, model.order, automaton)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Each word's place in the vocabulary."""
        return {word: place for place, word in enumerate(self.words)}

    @property
    def begin(self) -> int:
        """The state at the begin of a sentence."""
        return int(self.automaton.after[1 + self.ids[BEGIN]])

    def score(self, sentence: Sequence[str], *, begin: bool = True, end: bool = True) -> float:
        """The natural log-probability of words; those that the vocabulary lacks count as `UNKNOWN`.

        Args:
            sentence: words.
            begin: they are the first ones of a sentence.
            end: they are the last ones.
        """
        state, total = self.begin if begin else EMPTY, 0.0
        for word in [*sentence, END] if end else sentence:
            found, state = advance(self.automaton, state, self.ids.get(word, self.ids[UNKNOWN]))
            total += found
        return total


def _automaton(model: NGramTables) -> Automaton | None:
    """The automaton of tables; None where a context is missing."""
    sizes = [len(table.ids) for table in model.tables]
    if sum(sizes) > MOST_NGRAMS:
        raise UserError(
            "the language model is too large",
            found=f"{sum(sizes):,} n-grams",
            expected=f"at most {MOST_NGRAMS:,}",
            do="prune it",
        )
    firsts = [1, *(1 + np.cumsum(sizes)).tolist()]
    keys, places = hash_table(sum(sizes[1:]))
    whole = np.arange(firsts[-1], dtype=np.int32)
    automaton = Automaton(
        _natural([table.log10_probs for table in model.tables]),
        whole,
        _natural([table.log10_backoffs for table in model.tables]),
        np.zeros(firsts[-1], np.int32),
        keys,
        places,
        len(model.words),
    )
    goes_on = np.zeros(firsts[-1], bool)
    for table, first in list(zip(model.tables, firsts, strict=False))[1:]:
        if not _insert(automaton, goes_on, np.ascontiguousarray(table.ids, np.int32), first):
            return None
    longest = firsts[-2]
    goes_on |= automaton.backoffs != 0
    goes_on[longest:] = False
    after = whole
    for begin, end in itertools.pairwise(firsts):  # shorter ones are ready
        some = slice(begin, end)
        after[some] = np.where(goes_on[some], after[some], after[automaton.shorter[some]])
    return automaton._replace(
        backoffs=automaton.backoffs[:longest].copy(), shorter=after[automaton.shorter[:longest]]
    )


def _natural(log10: list[np.ndarray]) -> np.ndarray:
    """Natural logarithms, after one for the empty n-gram."""
    return (np.concatenate([np.zeros(1), *log10]) * np.log(10)).astype(np.float32)


def _with_contexts(model: NGramTables) -> NGramTables:
    """The tables, with an n-gram for every context. Those that were missing have a probability of NaN."""
    tables = list(model.tables)
    for n in range(len(tables) - 1, 1, -1):  # a context that is entered needs its own context, too
        contexts, (ids, probs, backoffs) = tables[n].ids[:, :-1], tables[n - 1]
        ranks = _ranks(np.concatenate([ids, contexts]), len(model.words))
        _, firsts = np.unique(ranks, return_index=True)
        new = contexts[firsts[firsts >= len(ids)] - len(ids)]
        tables[n - 1] = Table(
            np.concatenate([ids, new]),
            np.concatenate([probs, np.full(len(new), np.nan)]),
            np.concatenate([backoffs, np.zeros(len(new))]),
        )
    return NGramTables(model.words, tuple(tables))


def _ranks(ids: np.ndarray, words: int) -> np.ndarray:
    """A number for each row of `ids` [N, n], the same for rows that are equal."""
    ranks = ids[:, 0].astype(np.int64)
    for column in ids.T[1:]:
        ranks = np.unique(ranks * words + column, return_inverse=True)[1]
    return ranks
