"""Words and phrases that are expected, as an automaton over labels (Aho & Corasick 1975).

Labels lead from state to state, and a state knows which hot words have just been said, and which part of one.
A hot word counts where it is a whole word, so it stands between two blanks. The begin and the end of the
speech are blanks too. Words that need no blank between them, such as Chinese characters, stand as they are.

H  states: the first one, and one for each begin of a hot word
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.language_model.compiled import compiled
from flax_wavlm.recognition.beam_search.lexicon import DELIMITER, LETTER, WORD
from flax_wavlm.recognition.beam_search.trie import NONE, ROOT, Trie, child, trie_of


class HotWords(NamedTuple):
    """The arrays that `heard` reads."""

    trie: Trie
    shorter: (
        np.ndarray
    )  # int32 [H], the state of the longest end of what was said that also begins a hot word
    complete: np.ndarray  # float64 [H], how many hot words end there
    begun: np.ndarray  # float64 [H], the share of a hot word that has been said, 0 to 1


@compiled
def heard(hotwords: HotWords, state: int, label: int) -> int:
    """The state after a label."""
    while True:
        found = child(hotwords.trie, state, label)
        if found != NONE:
            return found
        if state == ROOT:
            return ROOT
        state = hotwords.shorter[state]


def spelt_hotwords(tokenizer: CTCTokenizer, hotwords: Sequence[str], kinds: np.ndarray) -> list[list[int]]:
    """The labels of hot words, by the text rule.

    Raises:
        UserError: names those that cannot be spelt in the vocabulary, and what it lacks.
    """
    spelt, lacking = [], {}
    for word in hotwords:
        text = tokenizer.normalise(word).strip()
        unknown = tokenizer.unknown_characters(text)
        labels = [] if unknown else tokenizer.encode(text)
        if not set(kinds[labels].tolist()) - {DELIMITER}:
            lacking[word] = unknown
        spelt.append(labels)
    if lacking:
        letters = sorted(set().union(*lacking.values()))
        raise UserError(
            f"the model's vocabulary cannot spell {some([shown(word) for word in lacking])}",
            field="hotwords",
            expected=f"no word with {some([shown(letter) for letter in letters])}" if letters else "letters",
            do="write them as the model's transcripts would, or leave them out",
        )
    return spelt


def words_of(labels: Sequence[int], kinds: np.ndarray) -> Iterator[list[int]]:
    """The labels of each word of a phrase."""
    word: list[int] = []
    for label in labels:
        if kinds[label] in (DELIMITER, WORD) and word:
            yield word
            word = []
        if kinds[label] == WORD:
            yield [label]
        elif kinds[label] != DELIMITER:
            word.append(label)
    if word:
        yield word


def hotwords_of(spelt: Sequence[Sequence[int]], kinds: np.ndarray, delimiter: int | None) -> HotWords:
    """The automaton of hot words that `spelt_hotwords` gave.

    Args:
        spelt: labels of each, without delimiters at their begins and ends.
        kinds: of the labels.
        delimiter: the label of the blank between words; None: there is none, and every label is a word.
    """
    blank = [] if delimiter is None else [delimiter]
    patterns, shares = [], []
    for labels in dict.fromkeys(map(tuple, spelt)):
        before = blank if kinds[labels[0]] == LETTER else []
        after = blank if kinds[labels[-1]] == LETTER else []
        patterns.append([*before, *labels, *after])
        said = np.arange(len(labels) + 1) / len(labels)
        shares.append([*([0.0] * len(before)), *said[1:], *([1.0] * len(after))])
    trie, ends, parents = trie_of(patterns, len(kinds))
    shorter, complete = np.zeros(len(parents), np.int32), np.zeros(len(parents))
    begun = np.zeros(len(parents))
    complete[ends] = 1.0
    states: dict[tuple[int, ...], int] = {(): ROOT}  # each begin of a pattern
    for pattern, share in zip(patterns, shares, strict=True):
        for length in range(1, len(pattern) + 1):
            part = tuple(pattern[:length])
            node = states[part] = int(child(trie, states[part[:-1]], part[-1]))
            begun[node] = max(begun[node], share[length - 1] if node not in ends else 0.0)
    for part, node in sorted(states.items(), key=lambda item: len(item[0])):
        if part:
            shorter[node] = next(states[part[i:]] for i in range(1, len(part) + 1) if part[i:] in states)
            complete[node] += complete[shorter[node]]
            begun[node] = max(begun[node], begun[shorter[node]])
    return HotWords(trie, shorter, complete, begun)


NO_HOTWORDS = HotWords(trie_of([], 1)[0], np.zeros(1, np.int32), np.zeros(1), np.zeros(1))
