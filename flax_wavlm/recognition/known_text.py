"""A text that is known, as labels to be aligned, and as words and characters once their times are known.

L  labels of the text      W  words of the text
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.corpora.folders import read_utf8
from flax_wavlm.data.text import is_mark, is_without_blanks
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.files import exists, is_file
from flax_wavlm.recognition.transcript import Character, TimedLabels, Word

MOST_BYTES = 4 * 2**20  # of a text file: more than anybody says in a day


class KnownWord(NamedTuple):
    """A word of the text, as it is written there."""

    begin: int  # its place in the text, [begin, end)
    end: int
    first: int  # its labels, [first, last)
    last: int


@dataclass(frozen=True)
class KnownText:
    """What is to be found in a recording.

    Attributes:
        text: as it was given, with white space folded.
        words: in their order. In a script that is written without blanks, a character is one. What the text
            rule leaves nothing of, such as a dash that stands alone, has no labels and is no word.
        ids: int [L], labels with delimiters between words. A character that the vocabulary lacks is `wild`.
        symbols: what each label stands for; " " for a delimiter.
        stars: bool [L + 1]: speech that the text lacks may stand before the label: at the text's beginning
            and end, and before words.
        wild: the label of characters that the vocabulary lacks, one behind the model's own.
        blank_id: the CTC blank.
        delimiter_id: the label between words; None: the vocabulary has none.
        lacking: the characters that the vocabulary lacks, sorted.
    """

    text: str
    words: tuple[KnownWord, ...]
    ids: np.ndarray
    symbols: tuple[str, ...]
    stars: np.ndarray
    wild: int
    blank_id: int
    delimiter_id: int | None
    lacking: tuple[str, ...]

    def written(self, first: int, last: int) -> str:
        """The text of the words [first, last), with what stands between them."""
        return self.text[self.words[first].begin : self.words[last - 1].end]

    @property
    def delimiters(self) -> np.ndarray:
        """bool [L]"""
        return np.array([symbol == " " for symbol in self.symbols], bool)


def read_text(file: Path) -> str:
    """The text of a UTF-8 file. UserError where it is empty, cannot be read, or is no recording's text."""
    if exists(file) and is_file(file) and (size := os.path.getsize(file)) > MOST_BYTES:
        raise UserError(
            f"{size / 2**20:,.0f} MiB of text",
            where=file,
            expected=f"at most {MOST_BYTES // 2**20}, as it is what is said in one recording",
            do="check the path",
        )
    text = read_utf8(file)
    if not text.strip():
        raise UserError("is empty", where=file, expected="the words that are spoken in the recording")
    return text


def known_text(tokenizer: CTCTokenizer, text: str, where: str = "the text") -> KnownText:
    """The labels of a text, by the tokenizer's text rule, word by word.

    `where` is what messages call the text.

    Raises:
        UserError: nothing is left of the text, or nothing that the vocabulary has.
    """
    ids: list[int] = []
    symbols: list[str] = []
    words: list[KnownWord] = []
    unknown: set[str] = set()
    text = " ".join(text.split())
    apart = False  # whether a blank stands before the word
    for begin, end in _units(text):
        spelt = tokenizer.normalise(text[begin:end])
        labels, lacking = _labels(tokenizer, spelt)
        apart |= text[begin - 1 : begin] == " "
        if not labels:
            continue
        if ids and apart and tokenizer.delimiter_id is not None:
            ids.append(tokenizer.delimiter_id)
            symbols.append(" ")
        words.append(KnownWord(begin, end, len(ids), len(ids) + len(labels)))
        apart = False
        unknown |= lacking
        ids += labels
        symbols += tokenizer.symbols(spelt)
    if all(id in (tokenizer.size, tokenizer.delimiter_id) for id in ids):
        lacks = f"; the vocabulary has {some(sorted(tokenizer.tokens))}" if unknown else ""
        raise UserError(
            f"{shown(text[:60])} holds nothing that the model can say",
            where=where,
            expected=f"text in the model's alphabet{lacks}",
            do="give the words that are spoken in the recording",
        )
    stars = np.zeros(len(ids) + 1, bool)
    stars[[*(word.first for word in words), len(ids)]] = True
    return KnownText(
        text,
        tuple(words),
        np.array(ids, np.intp),
        tuple(symbols),
        stars,
        tokenizer.size,
        tokenizer.blank_id,
        tokenizer.delimiter_id,
        tuple(sorted(unknown)),
    )


def _units(text: str) -> Iterator[tuple[int, int]]:
    """Places [begin, end) of words: what stands between blanks, or a character of a script without them.

    Marks and combining characters behind such a character belong to it.
    """
    begin, alone = 0, False  # whether the unit that begins there is such a character
    for place, character in enumerate(text):
        attached = unicodedata.category(character)[0] == "M" or is_mark(character)
        if character == " " or is_without_blanks(character) or (alone and not attached):
            if begin < place and not (is_without_blanks(character) and attached):
                yield begin, place
                begin = place
            alone = is_without_blanks(character)
            begin += character == " "
    if begin < len(text):
        yield begin, len(text)


def _labels(tokenizer: CTCTokenizer, word: str) -> tuple[list[int], set[str]]:
    """A normalised word's labels, and the symbols of it that the vocabulary lacks."""
    lacking = tokenizer.unknown_characters(word)
    if not lacking:
        return tokenizer.encode(word), lacking
    return [
        tokenizer.size if symbol in lacking else tokenizer.encode(symbol)[0]
        for symbol in tokenizer.symbols(word)
    ], lacking


def timed_words(known: KnownText, labels: TimedLabels) -> tuple[Word, ...]:
    """The words with their times: from a word's first label to its last. `labels` are those of `known`."""
    weights = np.where(known.delimiters, 0, labels.frames)
    return tuple(
        Word(
            known.text[begin:end],
            float(labels.times[first, 0]),
            float(labels.times[last - 1, 1]),
            float(np.average(labels.confidences[first:last], weights=weights[first:last])),
        )
        for begin, end, first, last in known.words
    )


def timed_characters(known: KnownText, labels: TimedLabels) -> tuple[Character, ...]:
    """The labels with their times, those between words left out."""
    return tuple(
        Character(
            symbol,
            float(labels.times[place, 0]),
            float(labels.times[place, 1]),
            float(labels.confidences[place]),
        )
        for place, symbol in enumerate(known.symbols)
        if symbol != " "
    )
