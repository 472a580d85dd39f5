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
from flax_wavlm.recognition.pauses import Gap, Spoken, gap_between, is_quiet

MARGIN = 0.1  # seconds of a pause that a clip keeps; models stumble over more than they were trained on
MIN_SECONDS = 0.1  # of a clip
MOST_UNLIKELY = 0.05  # of a clip's words: the model mishears some that were said
LONG_PAUSE = 2.0  # seconds: no clip goes on behind it
_UNSURE = 0.15  # seconds by which the boundaries of a stretch without text may be wrong
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
        level: dB [H], of the recording, as `pauses.all_levels` gives it.
        max_seconds: of a clip.
        min_confidence: of a clip; one with less is rejected. So is a clip in which a larger share of the
            words than `MOST_UNLIKELY` is below `align.UNLIKELY`.
    """
    quiet, duration = is_quiet(level), aligned.transcript.duration
    spoken = sorted(_spoken(aligned), key=lambda item: item[0].begin)
    items = [word for _, word in spoken]  # the word's number
    times = [time for time, _ in spoken]
    begin, end = (Spoken(time, time, (time, time)) for time in (0.0, duration))
    gaps = [gap_between(quiet, level, *neighbours) for neighbours in pairwise([begin, *times, end])]
    found: list[Segment] = []
    for low, high, reason in _runs(items, gaps):
        if items[low] is None:
            found.append(Segment(times[low].begin, times[low].end, "", 0.0, "speech that the text lacks"))
            continue
        numbers = [item for item in items[low:high] if item is not None]
        for first, last in _cuts(gaps[low : high + 1], max_seconds):
            span = _start(gaps[low + first]), _end(gaps[low + last])
            words = range(numbers[first], numbers[last - 1] + 1)
            judged = _judged(span, aligned, words, max_seconds, min_confidence)
            found.append(judged._replace(reason=reason or judged.reason))
    return found


def _spoken(aligned: Aligned) -> Iterator[tuple[Spoken, int | None]]:
    """The words with their numbers, and None for each stretch of speech that the text lacks."""
    for number, word in enumerate(aligned.transcript.words):
        middle = (word.start + word.end) / 2
        yield Spoken(word.start, word.end, (middle, middle)), number
    for begin, end in aligned.absent.tolist():
        inside = min(_UNSURE, (end - begin) / 2)
        yield Spoken(begin, end, (begin + inside, end - inside)), None


def _start(gap: Gap) -> float:
    """Where a clip behind the gap starts: with a margin of silence."""
    return gap.end - min(MARGIN, gap.pause / 2)


def _end(gap: Gap) -> float:
    """Where a clip before the gap ends."""
    return gap.begin + min(MARGIN, gap.pause / 2)


def _runs(items: Sequence[int | None], gaps: Sequence[Gap]) -> Iterator[tuple[int, int, str]]:
    """Places [begin, end) of words that may be in one clip, and of each stretch without text.

    The third says why the words are not to be trained on. Words that are joined to speech that the text lacks
    may be the like of them in that speech: they are left out up to the next pause.
    """
    begin = 0
    for place in range(1, len(items) + 1):
        if place < len(items) and None not in items[place - 1 : place + 1] and gaps[place].pause < LONG_PAUSE:
            continue
        paused = [i for i in range(begin + 1, place) if gaps[i].pause]
        first = last = 0
        if items[begin] is not None and begin and items[begin - 1] is None and not gaps[begin].pause:
            first = (paused[0] if paused else place) - begin
        if items[begin] is not None and items[place : place + 1] == [None] and not gaps[place].pause:
            last = place - max(paused[-1] if paused else begin, begin + first)
        for low, high, joined in (
            (begin, begin + first, True),
            (begin + first, place - last, False),
            (place - last, place, True),
        ):
            if low < high:
                yield low, high, "no pause before or after speech that the text lacks" if joined else ""
        begin = place


def _cuts(gaps: Sequence[Gap], max_seconds: float) -> list[tuple[int, int]]:
    """Cuts W words with W + 1 gaps around them into clips, places [begin, end), at the least cost.

    A clip of a single word may be longer than `max_seconds`.
    """
    starts, ends = [_start(gap) for gap in gaps], [_end(gap) for gap in gaps]
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
    span: tuple[float, float], aligned: Aligned, numbers: range, max_seconds: float, min_confidence: float
) -> Segment:
    """The clip of the words of these numbers."""
    words = aligned.transcript.words[numbers.start : numbers.stop]
    weights = [max(word.end - word.start, 1e-6) for word in words]
    confidence = float(np.average([word.confidence for word in words], weights=weights))
    unlikely = [word.word for word in words if word.confidence < UNLIKELY]
    seconds = span[1] - span[0]
    reason = ""
    if seconds < MIN_SECONDS:
        reason = f"shorter than {MIN_SECONDS:g} s: {max(0.0, seconds):.2f} s"
    elif seconds > max_seconds:
        reason = f"longer than {max_seconds:g} s: {seconds:.2f} s without a place to cut"
    elif len(unlikely) > MOST_UNLIKELY * len(words):
        reason = f"words that were hardly said: {some(unlikely)}"
    elif confidence < min_confidence:
        reason = f"confidence below {min_confidence:g}: {confidence:.3f}"
    return Segment(*span, aligned.known.written(numbers.start, numbers.stop), confidence, reason)
