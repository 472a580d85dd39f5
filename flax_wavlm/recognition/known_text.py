"""A text that is known, as labels to be aligned, and as words and characters once their times are known.

L  labels of the text      W  words of the text
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.corpora.folders import read_utf8
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.files import exists, is_file
from flax_wavlm.recognition.transcript import Character, TimedLabels, Word

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**20  # of a text file: what is said in a day is a twentieth of it


class Piece(NamedTuple):
    """A word of the text, and its labels: places [begin, end) of `KnownText.ids`."""

    word: str
    begin: int
    end: int


@dataclass(frozen=True)
class KnownText:
    """What is to be found in a recording.

    Attributes:
        text: as it was given, with white space folded.
        ids: int [L], labels with delimiters between words. A character that the vocabulary lacks is `wild`.
        symbols: what each label stands for; " " for a delimiter.
        words: in their order; those that the text rule leaves nothing of have no labels and are not here. In
            a vocabulary without blanks between words, each label is one.
        stars: bool [L + 1]: speech that the text lacks may stand before the label: at the text's beginning
            and end, and before what stands behind white space in it.
        wild: the label of characters that the vocabulary lacks, one behind the model's own.
        blank_id: the CTC blank.
        joint: what stands between two words where they are written as a text.
    """

    text: str
    ids: np.ndarray
    symbols: tuple[str, ...]
    words: tuple[Piece, ...]
    stars: np.ndarray
    wild: int
    blank_id: int
    joint: str

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

    The log names characters that the vocabulary lacks. `where` is what messages call the text.

    Raises:
        UserError: nothing is left of the text, or nothing that the vocabulary has.
    """
    ids: list[int] = []
    symbols: list[str] = []
    words: list[Piece] = []
    begins: list[int] = []
    unknown: set[str] = set()
    for word in text.split():
        spelt = tokenizer.normalise(word)
        labels, lacking = _labels(tokenizer, spelt)
        if not labels:
            continue
        unknown |= lacking
        if ids and tokenizer.delimiter_id is not None:
            ids.append(tokenizer.delimiter_id)
            symbols.append(" ")
        begin = len(ids)
        begins.append(begin)
        ids += labels
        symbols += tokenizer.symbols(spelt)
        if tokenizer.delimiter_id is None:
            words += [Piece(symbols[place], place, place + 1) for place in range(begin, len(ids))]
        else:
            words.append(Piece(word, begin, len(ids)))
    said = np.array([id != tokenizer.size and symbol != " " for id, symbol in zip(ids, symbols, strict=True)])
    if not said.any():
        lacks = f"; the vocabulary has {some(sorted(tokenizer.tokens))}" if unknown else ""
        raise UserError(
            f"{shown(text[:60])} holds nothing that the model can say",
            where=where,
            expected=f"text in the model's alphabet{lacks}",
            do="give the words that are spoken in the recording",
        )
    if unknown:
        log.warning(
            "%s: the vocabulary lacks %s: any sound is taken for them",
            where,
            some(sorted(map(shown, unknown))),
        )
    stars = np.zeros(len(ids) + 1, bool)
    stars[[*begins, len(ids)]] = True
    return KnownText(
        " ".join(text.split()),
        np.array(ids, np.intp),
        tuple(symbols),
        tuple(words),
        stars,
        tokenizer.size,
        tokenizer.blank_id,
        "" if tokenizer.delimiter_id is None and not tokenizer.by_token else " ",
    )


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
            word,
            float(labels.times[begin, 0]),
            float(labels.times[end - 1, 1]),
            float(np.average(labels.confidences[begin:end], weights=weights[begin:end])),
        )
        for word, begin, end in known.words
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
