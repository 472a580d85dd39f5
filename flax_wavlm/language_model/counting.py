"""The n-grams of a text, and how often each occurs: sorted integer arrays, no Python loop over n-grams.

An n-gram is a number: its place among all n-grams of its length, in the order of their words' numbers.

    L  words of the text, the marks at the begins and ends of its sentences among them
    W  words of the vocabulary      N  n-grams of one length
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from flax_wavlm.errors import UserError
from flax_wavlm.language_model.tables import BEGIN, END, UNKNOWN
from flax_wavlm.parallel.machine import held_bytes, in_gb, machine_bytes

MARKS = (UNKNOWN, BEGIN, END)  # the first words of every vocabulary
UNKNOWN_ID, BEGIN_ID, END_ID = range(3)
MOST_WORDS = 2**31 - 1  # of a text: its places are int32
SORTING_BYTES = 56  # for each word of the text, while n-grams of one length are sorted; measured
_FIRST_CHECK = 2**22  # words of a text after which its memory is asked for, and then at each doubling


class Text(NamedTuple):
    """Sentences as numbers."""

    words: tuple[str, ...]  # the vocabulary: `MARKS`, then the others as they first occur
    ids: np.ndarray  # int32 [L]: of each sentence `BEGIN`, its words, `END`

    @property
    def sentences(self) -> int:
        """How many sentences the text has."""
        return int(np.count_nonzero(self.ids == BEGIN_ID))


class NGrams(NamedTuple):
    """The n-grams of one length n."""

    last: np.ndarray  # int32 [N], the last word of each
    prefixes: np.ndarray  # int32 [N], the n-gram without its last word: a number among those of length n - 1
    suffixes: np.ndarray  # int32 [N], the n-gram without its first word
    counts: np.ndarray  # int32 [N], how often it occurs


def number_words(sentences: Iterable[Iterable[str]], *, min_count: int = 1) -> Text:
    """Reads sentences, those without words left out.

    Args:
        sentences: words of each. `UNKNOWN` may be among them.
        min_count: words that occur less often become `UNKNOWN`.
    Raises:
        UserError: there is no word, a word is `BEGIN` or `END`, or the memory does not hold the text.
    """
    numbers: defaultdict[str, int] = defaultdict()
    numbers.default_factory = numbers.__len__
    for mark in MARKS:
        numbers[mark]
    ids, next_check = array("i"), _FIRST_CHECK
    for sentence in sentences:
        ids.append(BEGIN_ID)
        begin = len(ids)
        ids.extend(map(numbers.__getitem__, sentence))
        if len(ids) == begin:
            ids.pop()
            continue
        ids.append(END_ID)
        if len(ids) > next_check:
            check_memory(SORTING_BYTES * len(ids), f"{len(ids):,} words, and there are more")
            next_check = 2 * len(ids)
    if not ids:
        raise UserError("the text has no words", expected="sentences, one a line", do="check the text")
    if len(ids) > MOST_WORDS:
        raise UserError(
            f"the text has {len(ids):,} words", expected=f"at most {MOST_WORDS:,}", do="give less"
        )
    return _without_rare(tuple(numbers), np.frombuffer(ids, np.int32), min_count)


def _without_rare(words: tuple[str, ...], ids: np.ndarray, min_count: int) -> Text:
    counts = np.bincount(ids, minlength=len(words))
    if counts[BEGIN_ID] != counts[END_ID] or (ids[1:][ids[:-1] == END_ID] != BEGIN_ID).any():
        raise UserError(f"{BEGIN} or {END} is among the words", expected="sentences without such marks")
    kept = counts >= min_count
    kept[: len(MARKS)] = True
    if kept.all():
        return Text(words, ids)
    numbers = np.where(kept, np.cumsum(kept) - 1, UNKNOWN_ID).astype(np.int32)
    return Text(tuple(word for word, stays in zip(words, kept.tolist(), strict=True) if stays), numbers[ids])


def count_ngrams(text: Text, order: int) -> Iterator[NGrams]:
    """The n-grams of 1, 2, ... `order` words. None reaches from one sentence into the next.

    Those of one word are the vocabulary, each word at its own number. Those of some length may be none.

    Raises UserError where the memory does not hold the arrays, of `SORTING_BYTES` for each word.
    """
    ids, words = text.ids, len(text.words)
    alone = np.zeros(words, np.int32)
    yield NGrams(
        np.arange(words, dtype=np.int32), alone, alone, np.bincount(ids, minlength=words).astype(np.int32)
    )
    numbers = ids  # [L] of the n-gram that begins at each place; -1: it would leave the sentence
    for length in range(2, order + 1):
        check_memory(SORTING_BYTES * len(ids), f"counting the {length}-grams of {len(ids):,} words")
        numbers, ngrams = _longer(ids, numbers, length, words)
        yield ngrams


def _longer(ids: np.ndarray, shorter: np.ndarray, length: int, words: int) -> tuple[np.ndarray, NGrams]:
    """The number of the n-gram at each place [L], from those of length - 1; and the n-grams."""
    beyond = length - 1  # from an n-gram's begin to its last word
    places = np.flatnonzero((shorter[:-beyond] >= 0) & (ids[beyond:] != BEGIN_ID)).astype(np.int32)
    keys = shorter[places] * np.int64(words) + ids[places + beyond]
    order = np.argsort(keys)
    keys = keys[order]
    places = places[order]
    del order
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else places
    counts = np.diff(begins, append=len(keys))
    numbers = np.full(len(ids), -1, np.int32)
    numbers[places] = np.repeat(np.arange(len(begins), dtype=np.int32), counts)
    prefixes, last = np.divmod(keys[begins], words)
    suffixes = shorter[places[begins] + 1]
    return numbers, NGrams(
        last.astype(np.int32), prefixes.astype(np.int32), suffixes, counts.astype(np.int32)
    )


def check_memory(needed: int, what: str) -> None:
    """UserError where the machine does not have `needed` bytes beside those that the process holds."""
    held, there = held_bytes(), machine_bytes()
    if held + needed > there:
        raise UserError(
            f"{what}: {in_gb(needed)} of memory are needed beside {in_gb(held)} in use, of {in_gb(there)}",
            do="give less text, a lower order, or a machine with more memory",
        )
