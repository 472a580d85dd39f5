"""What was said in a recording: its text, and when each word and character of it was said.

U  labels of a hypothesis
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.text import is_without_blanks
from flax_wavlm.data.tokenizer import CTCTokenizer
from flax_wavlm.errors import UserError


class Character(NamedTuple):
    """A character, or a longer symbol of the vocabulary."""

    character: str
    start: float  # seconds from the recording's beginning
    end: float
    confidence: float  # 0 to 1


class Word(NamedTuple):
    """A word. Where there are no blanks between words, each character or symbol is one.

    That is so in a vocabulary without a blank, and in scripts such as Chinese or Thai in any vocabulary.
    """

    word: str
    start: float
    end: float
    confidence: float


class Alternative(NamedTuple):
    """What else may have been said in a recording, by a beam search; natural logarithms, higher is better."""

    text: str
    score: float  # what the search went by, see `beam_search.settings.BeamSettings`
    ctc_score: float | None  # the log-probability of the labels by CTC
    lm_score: float | None  # the words' log-probability by the language model; None: there is none


@dataclass(frozen=True)
class Transcript:
    """What became of one recording: what it says, or the reason why nothing is known of it.

    Attributes:
        file: the recording's path, or what its caller calls it.
        text: what was said.
        duration: of the recording, in seconds.
        words, characters: in the order of time. Blanks between words are no characters.
        confidence: 0 to 1, of all that was said; None where nothing was.
        error: why there is no text.
        alternatives: by a beam search, the best one first, which is `text`; none by greedy decoding.
    """

    file: Path | str
    text: str = ""
    duration: float = 0.0
    words: tuple[Word, ...] = ()
    characters: tuple[Character, ...] = ()
    confidence: float | None = None
    error: UserError | None = None
    alternatives: tuple[Alternative, ...] = ()


class TimedLabels(NamedTuple):
    """Labels without blanks, and what is known of each."""

    ids: np.ndarray  # int [U]
    times: np.ndarray  # float [U, 2], seconds: begin and end
    confidences: np.ndarray  # float [U], 0 to 1
    frames: np.ndarray  # int [U]: how many frames a confidence is the mean of


def in_sequence(tokenizer: CTCTokenizer, stretches: Sequence[TimedLabels]) -> TimedLabels:
    """The labels of all stretches of speech of a recording: words end where a stretch ends."""
    parts: list[TimedLabels] = []
    for labels in stretches:
        if not len(labels.ids):
            continue
        if parts and tokenizer.delimiter_id is not None:
            gap = np.array([[parts[-1].times[-1, 1], labels.times[0, 0]]])
            parts.append(TimedLabels(np.array([tokenizer.delimiter_id]), gap, np.ones(1), np.ones(1, int)))
        parts.append(labels)
    if not parts:
        return TimedLabels(np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros(0, int))
    return TimedLabels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


class Spelled(NamedTuple):
    """Labels as text; fields as `Transcript`'s."""

    text: str
    words: tuple[Word, ...]
    characters: tuple[Character, ...]
    confidence: float | None


def spell(tokenizer: CTCTokenizer, labels: TimedLabels) -> Spelled:
    """Writes labels as text, by the tokenizer's text rule, with the times of words and characters.

    A word lasts from the begin of its first character to the end of its last one. Its confidence is the mean
    over the frames of its characters. What the text rule leaves nothing of is no word.
    """
    words, characters = [], []
    for text, part in words_of_labels(tokenizer, labels.ids):
        start, end = float(labels.times[part[0], 0]), float(labels.times[part[-1], 1])
        words.append(Word(text, start, end, _mean(labels, part)))
        for i in part.tolist():
            symbol = tokenizer.normalise_hypothesis(tokenizer.token(int(labels.ids[i])))
            if symbol:
                start, end = labels.times[i].tolist()
                characters.append(Character(symbol, start, end, float(labels.confidences[i])))
    said = np.flatnonzero(~np.isin(labels.ids, _delimiters(tokenizer)))
    return Spelled(
        tokenizer.normalise_hypothesis(tokenizer.decode(labels.ids, collapsed=True)),
        tuple(words),
        tuple(characters),
        _mean(labels, said) if len(said) else None,
    )


def _mean(labels: TimedLabels, part: np.ndarray) -> float:
    return float(np.average(labels.confidences[part], weights=labels.frames[part]))


def _delimiters(tokenizer: CTCTokenizer) -> list[int]:
    return [] if tokenizer.delimiter_id is None else [tokenizer.delimiter_id]


def words_of_labels(tokenizer: CTCTokenizer, ids: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each word that labels [U] spell, and its labels' places. What the rule leaves nothing of is no word."""
    letters = np.flatnonzero(~np.isin(ids, _delimiters(tokenizer)))
    alone = np.array([_is_word(tokenizer, int(id)) for id in ids[letters]], bool)
    breaks = (np.diff(letters) > 1) | alone[:-1] | alone[1:]
    for part in np.split(letters, np.flatnonzero(breaks) + 1):
        text = tokenizer.normalise_hypothesis(tokenizer.decode(ids[part], collapsed=True)).strip()
        if text:
            yield text, part


def _is_word(tokenizer: CTCTokenizer, id: int) -> bool:
    """Whether a label is a word whatever stands beside it."""
    return tokenizer.delimiter_id is None or is_without_blanks(tokenizer.token(id))
