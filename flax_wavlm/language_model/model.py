"""The log-probability of a word after others, by a back-off n-gram model.

The model is an automaton. A state stands for the longest end of what was said that is an n-gram of the model,
so it says all that the next word's probability depends on. A word leads from a state to the next one, with
its log-probability. `advance` is compiled by numba, for the beam search; nothing else in it is.

    S  states: the empty one, then every n-gram, shorter ones first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN, NGramTables

EMPTY = 0  # the state in which nothing is known of what was said
_NOWHERE = -1


class Automaton(NamedTuple):
    """The arrays that `advance` reads."""

    log_probs: np.ndarray  # float32 [S], natural logarithms: of an n-gram's last word after the others
    backoffs: np.ndarray  # float32 [S], natural logarithms
    shorter: np.ndarray  # int32 [S], the state of the longest shorter end of the n-gram
    keys: np.ndarray  # int64 [a power of 2], a hash table: state * W + word, or -1
    places: np.ndarray  # int32, beside `keys`: the n-gram that the state's words and this word are
    words: int  # W


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _slot(keys: np.ndarray, key: int) -> Any:
    """Where a key is in the hash table, or may be put."""
    mask = len(keys) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    slot = np.int64(mixed >> np.uint64(20)) & mask
    while keys[slot] != key and keys[slot] != _NOWHERE:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def advance(automaton: Automaton, state: int, word: int) -> tuple[float, int]:
    """The natural log-probability of a word (its place in the vocabulary), and the state after it."""
    total = 0.0
    while state != EMPTY:
        slot = _slot(automaton.keys, state * automaton.words + word)
        if automaton.keys[slot] != _NOWHERE:
            found = automaton.places[slot]
            return total + automaton.log_probs[found], found
        total += automaton.backoffs[state]
        state = automaton.shorter[state]
    return total + automaton.log_probs[1 + word], 1 + word


@njit(cache=True)  # type: ignore[untyped-decorator]
def _find(keys: np.ndarray, places: np.ndarray, words: int, ngram: np.ndarray) -> int:
    """The state of an n-gram; `_NOWHERE` where the model has none."""
    state = 1 + ngram[0]
    for word in ngram[1:]:
        slot = _slot(keys, state * words + word)
        if keys[slot] == _NOWHERE:
            return _NOWHERE
        state = places[slot]
    return state


@njit(cache=True)  # type: ignore[untyped-decorator]
def _insert(
    keys: np.ndarray, places: np.ndarray, shorter: np.ndarray, words: int, ids: np.ndarray, first: int
) -> None:
    """Enters n-grams of one length of 2 or more, whose states are numbered from `first`."""
    for i in range(len(ids)):
        context = _find(keys, places, words, ids[i, :-1])
        slot = _slot(keys, context * words + ids[i, -1])
        keys[slot], places[slot] = context * words + ids[i, -1], first + i
        for begin in range(1, ids.shape[1]):
            found = _find(keys, places, words, ids[i, begin:])
            if found != _NOWHERE:
                shorter[first + i] = found
                break


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
        """The automaton of tables."""
        model = _with_contexts(model)
        words, sizes = len(model.words), [len(table.ids) for table in model.tables]
        firsts = 1 + np.concatenate([[0], np.cumsum(sizes)])
        keys = np.full(1 << int(2 * sum(sizes[1:]) + 2).bit_length(), _NOWHERE, np.int64)
        places = np.zeros(len(keys), np.int32)
        shorter = np.zeros(int(firsts[-1]), np.int32)
        for table, first in list(zip(model.tables, firsts, strict=False))[1:]:
            _insert(keys, places, shorter, words, table.ids, first)

        def joined(arrays: list[np.ndarray]) -> np.ndarray:
            return (np.concatenate([np.zeros(1), *arrays]) * np.log(10)).astype(np.float32)

        probs = joined([table.log10_probs for table in model.tables])
        backoffs = joined([table.log10_backoffs for table in model.tables])
        return cls(model.words, len(sizes), Automaton(probs, backoffs, shorter, keys, places, words))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Each word's place in the vocabulary."""
        return {word: place for place, word in enumerate(self.words)}

    @property
    def begin(self) -> int:
        """The state at the begin of a sentence."""
        return 1 + self.ids[BEGIN]

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


def _with_contexts(model: NGramTables) -> NGramTables:
    """The tables, with an n-gram for every context; files of pruned models may lack some."""
    return model
