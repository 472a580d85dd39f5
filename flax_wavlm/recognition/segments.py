"""A long recording whose text is known, cut at pauses into clips to train on, each with a score.

W  words      H  steps of 10 ms, see `pauses.py`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from flax_wavlm.errors import some
from flax_wavlm.recognition.align import UNLIKELY, Aligned
from flax_wavlm.recognition.pauses import Gap, gap_between, is_quiet
from flax_wavlm.recognition.transcript import Word

MARGIN = 0.2  # seconds of a pause that a clip keeps
LONG_PAUSE = 2.0  # seconds: no clip goes on behind it
_GOOD_PAUSE = 0.5  # seconds: a longer pause is no better to cut at
_WITHOUT_PAUSE = 3.0  # so many more cuts are taken to spare one inside fluent speech


class Segment(NamedTuple):
    """A clip, or a stretch of speech without text."""

    start: float  # seconds
    end: float
    text: str
    confidence: float  # the mean of its words' over their time; 0 without words
    reason: str  # why it is not to be trained on; "" where it is


def segments(
    aligned: Aligned, level: np.ndarray, *, max_seconds: float, min_confidence: float
) -> list[Segment]:
    """The clips of a recording in the order of time, with those that are not to be trained on.

    Clips are cut between words: as few as can be, at the longest pauses. Speech that the text lacks is in no
    clip, and a segment of its own. Beyond `MARGIN`, a pause at which a recording is cut is in no clip either.

    Args:
        aligned: words with their times, and the stretches of speech that the text lacks.
        level: dB [H], of the recording, as `pauses.levels` gives it.
        max_seconds: of a clip.
        min_confidence: of a clip; one with less is rejected, as is one with a word below `align.UNLIKELY`.
    """
    quiet, duration = is_quiet(level), aligned.transcript.duration
    spoken: list[tuple[float, float, Word | None]] = [
        *((word.start, word.end, word) for word in aligned.transcript.words),
        *((begin, end, None) for begin, end in aligned.absent.tolist()),
    ]
    spoken.sort(key=lambda item: item[0])
    items = [word for _, _, word in spoken]
    times = [(begin, end) for begin, end, _ in spoken]
    gaps = [
        gap_between(quiet, level, before, after)
        for before, after in pairwise([(0.0, 0.0), *times, (duration, duration)])
    ]
    found: list[Segment] = []
    for begin, end in _runs(items, gaps):
        if items[begin] is None:
            found.append(Segment(*times[begin], "", 0.0, "speech that the text lacks"))
            continue
        words = [item for item in items[begin:end] if item is not None]
        for first, last in _cuts(gaps[begin : end + 1], max_seconds):
            clip = _Span.of(gaps[begin + first], gaps[begin + last])
            found.append(_judged(clip, words[first:last], aligned.joint, max_seconds, min_confidence))
    return found


class _Span(NamedTuple):
    start: float
    end: float

    @classmethod
    def of(cls, before: Gap, after: Gap) -> _Span:
        """What is between two gaps, with a margin of silence."""
        return cls(before.end - min(MARGIN, before.pause / 2), after.begin + min(MARGIN, after.pause / 2))


def _runs(items: Sequence[Word | None], gaps: Sequence[Gap]) -> Iterator[tuple[int, int]]:
    """Places [begin, end) of words that may be in one clip, and of each stretch without text."""
    begin = 0
    for place in range(1, len(items) + 1):
        if place == len(items) or None in (items[place - 1], items[place]) or gaps[place].pause >= LONG_PAUSE:
            yield begin, place
            begin = place


def _cuts(gaps: Sequence[Gap], max_seconds: float) -> list[tuple[int, int]]:
    """Cuts W words with W + 1 gaps around them into clips, places [begin, end), at the least cost.

    A clip of a single word may be longer than `max_seconds`.
    """
    starts = [gap.end - min(MARGIN, gap.pause / 2) for gap in gaps]
    ends = [gap.begin + min(MARGIN, gap.pause / 2) for gap in gaps]
    costs = [1 + _WITHOUT_PAUSE * (1 - min(1.0, gap.pause / _GOOD_PAUSE)) for gap in gaps]
    best, begins = [0.0], [0]
    for end in range(1, len(gaps)):
        choices = [end - 1]
        while choices[-1] > 0 and ends[end] - starts[choices[-1] - 1] <= max_seconds:
            choices.append(choices[-1] - 1)
        begin = min(choices, key=best.__getitem__)
        best.append(best[begin] + costs[end])
        begins.append(begin)
    clips, end = [], len(gaps) - 1
    while end > 0:
        clips.append((begins[end], end))
        end = begins[end]
    return clips[::-1]


def _judged(
    span: _Span, words: Sequence[Word], joint: str, max_seconds: float, min_confidence: float
) -> Segment:
    lengths = np.array([word.end - word.start for word in words])
    confidence = float(np.average([word.confidence for word in words], weights=np.maximum(lengths, 1e-6)))
    unlikely = [word.word for word in words if word.confidence < UNLIKELY]
    reason = ""
    if span.end - span.start > max_seconds:
        reason = f"longer than {max_seconds:g} s: {span.end - span.start:.2f} s without a place to cut"
    elif unlikely:
        reason = f"words that were hardly said: {some(unlikely)}"
    elif confidence < min_confidence:
        reason = f"confidence below {min_confidence:g}: {confidence:.3f}"
    return Segment(*span, joint.join(word.word for word in words), confidence, reason)
