"""A recording and its text: when each word of the text was said, and how surely it was.

T  frames      V  labels of the model      L  labels of the text
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from flax_wavlm.data.clips import decode_audio, describe_skipped
from flax_wavlm.data.corpora.utterance import Samples, Skipped, Utterance
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, shown, some
from flax_wavlm.progress import tracked
from flax_wavlm.recognition.aligner import aligned_times
from flax_wavlm.recognition.alignment import STAR_PENALTY, Alignment, align_labels
from flax_wavlm.recognition.emissions import Emissions, Hearer
from flax_wavlm.recognition.known_text import KnownText, known_text, timed_characters, timed_words
from flax_wavlm.recognition.recordings import Source
from flax_wavlm.recognition.transcript import TimedLabels, Transcript, Word

log = logging.getLogger(__name__)

T = TypeVar("T")

UNLIKELY = 0.1  # a word of less confidence is named: it may not have been said
RUN_PAUSE = 0.8  # seconds: the model may hear a word half as early or late
LEAST_ABSENT = 0.3  # seconds of speech that the text lacks; less is a sound that the model takes for another


class Aligned(NamedTuple):
    """A text with its times."""

    transcript: Transcript
    absent: np.ndarray  # float [N, 2]: stretches of speech that the text lacks, in seconds
    known: KnownText

    @property
    def unlikely(self) -> list[Word]:
        """The words that may not have been said."""
        return [word for word in self.transcript.words if word.confidence < UNLIKELY]

    def doubts(self) -> list[str]:
        """What the text and the recording do not have in common, "kind: details"."""
        found = []
        if self.known.lacking:
            lacking = some([shown(character) for character in self.known.lacking])
            found.append(f"characters that the vocabulary lacks, and any sound may be: {lacking}")
        if words := self.unlikely:
            places = [f"{word.word} ({_clock(word.start)})" for word in words]
            found.append(f"words that were hardly said: {some(places)}")
        if len(self.absent):
            places = [f"{_clock(begin)} to {_clock(end)}" for begin, end in self.absent.tolist()]
            found.append(f"speech that the text lacks: {some(places)}")
        return found


def align_text(emissions: Emissions, known: KnownText, file: Path | str, *, stars: bool = True) -> Aligned:
    """When a text was said, from what the model says of each frame.

    The model itself finds the text in the recording, and is asked how sure it is. Where it has an aligner,
    that then says when each label was said, between one pause and the next.

    Args:
        file: what the transcript calls the recording.
        stars: speech that the text lacks may stand before, behind and between its words.
    Raises:
        UserError: the recording is too short for the text.
    """
    log_probs = _with_wild(emissions.log_probs, known)
    found = align_labels(log_probs, known.ids, known.blank_id, stars=known.stars if stars else None)
    absent = found.absent * emissions.frame_seconds
    absent = absent[absent[:, 1] - absent[:, 0] >= LEAST_ABSENT]
    times = found.frames * emissions.frame_seconds
    if emissions.aligner is not None:
        times = _by_aligner(found, _with_wild(emissions.aligner, known), known, emissions.frame_seconds)
    frames = np.diff(found.frames, axis=1)[:, 0]
    labels = TimedLabels(known.ids, np.clip(times, 0.0, emissions.duration), found.confidences, frames)
    said = np.where(known.delimiters, 0, frames)
    transcript = Transcript(
        file,
        known.text,
        emissions.duration,
        timed_words(known, labels),
        timed_characters(known, labels),
        float(np.average(labels.confidences, weights=said)),
    )
    return Aligned(transcript, absent, known)


def _by_aligner(
    found: Alignment, log_probs: np.ndarray, known: KnownText, frame_seconds: float
) -> np.ndarray:
    """Seconds [L, 2]. The aligner hears too little to find a text among others: it is given runs of words.

    A run ends where the model hears a long pause, or speech that the text lacks.

    Args:
        found: by the model.
        log_probs: the aligner's, [T, V], or [T, V + 1] where a label is wild.
    """
    times = found.frames * frame_seconds
    for labels, frames in _runs(found, known, len(log_probs), round(RUN_PAUSE / frame_seconds)):
        heard = log_probs[frames.start : frames.stop]
        own = slice(labels.start, labels.stop)
        run = aligned_times(known.ids[own], heard, known.blank_id, known.delimiter_id, frame_seconds)
        begin, end = frames.start * frame_seconds, frames.stop * frame_seconds
        times[own] = np.clip(begin + run, begin, end)
    return times


def _runs(found: Alignment, known: KnownText, frames: int, pause: int) -> Iterator[tuple[range, range]]:
    """Runs of words, their labels and frames; `pause` is in frames.

    No speech that the text lacks is in a run, and at most half of a long pause.
    """

    def absent(low: int, high: int) -> np.ndarray:
        return found.absent[(found.absent[:, 0] >= low) & (found.absent[:, 1] <= high)]

    before_all, behind_all = absent(0, int(found.frames[0, 0])), absent(int(found.frames[-1, 1]), frames)
    label, frame = 0, int(before_all[-1, 1]) if len(before_all) else 0
    for word, following in pairwise(known.words):
        end, begin = int(found.frames[word.last - 1, 1]), int(found.frames[following.first, 0])
        until = after = (end + begin) // 2
        if len(between := absent(end, begin)):
            until, after = int(between[0, 0]), int(between[-1, 1])
        elif begin - end < pause:
            continue
        yield range(label, word.last), range(frame, until)
        label, frame = following.first, after
    yield range(label, len(known.ids)), range(frame, int(behind_all[0, 0]) if len(behind_all) else frames)


def align_recording(
    recogniser: Hearer,
    audio: Path | Samples,
    text: str,
    *,
    text_name: Path | str = "",
    stars: bool = True,
    **settings: Any,
) -> Aligned:
    """When each word of a text was said in a recording of any length.

    Args:
        audio: a file, or samples with their rate.
        text: what is said; it goes through the tokenizer's text rule.
        text_name: what messages call the text.
        stars: as for `align_text`.
        settings: of `Recogniser.every_emissions`.
    Raises:
        UserError: the recording cannot be read, the text has nothing that the model can say, or the
            recording is too short for the text.
    """
    name = audio if isinstance(audio, Path) else "the recording"
    known = known_text(recogniser.tokenizer, text, str(text_name or f"the text of {name}"))
    return _aligned(recogniser.emissions(audio, **settings), known, name, stars)


def align_utterances(
    recogniser: Hearer,
    utterances: Sequence[Utterance],
    unusable: Sequence[Skipped] = (),
    *,
    name: str,
    stars: bool = True,
    channel: str = "auto",
    **settings: Any,
) -> Iterator[Transcript]:
    """The same of each clip of a corpus, in their order; one that cannot be aligned says why.

    Args:
        unusable: what the corpus's reader could not use; the log names it.
        name: what messages call the clips.
        stars, channel, settings: as for `align_recording`.
    """
    if unusable:
        log.warning("%s: %s", name, describe_skipped(unusable))
    audio = decode_audio(utterances, threads=None, cache=None, name=name, channel=channel)
    ready: list[KnownText | UserError] = []
    sources: list[Source] = []
    for utterance, samples in zip(utterances, audio, strict=True):
        try:
            if isinstance(samples, UserError):
                raise samples
            ready.append(known_text(recogniser.tokenizer, utterance.text, f"the text of {utterance.id}"))
            sources.append(Source(utterance.id, Samples(samples, SAMPLE_RATE)))
        except UserError as error:
            ready.append(error)
    heard = recogniser.every_emissions(sources, **settings)
    doubts = []
    for utterance, known in zip(utterances, tracked(ready, "aligning", len(ready)), strict=True):
        try:
            text = _sound(known)
            aligned = _aligned(_sound(next(heard)), text, utterance.id, stars)
        except UserError as error:
            yield Transcript(utterance.id, error=error)
            continue
        doubts += [Skipped(utterance.id, doubt) for doubt in aligned.doubts()]
        yield aligned.transcript
    if doubts:
        log.warning("%s: %s", name, describe_skipped(doubts, verb="in doubt"))


def report(aligned: Aligned) -> None:
    """Says in the log what the text and the recording do not have in common."""
    for doubt in aligned.doubts():
        log.warning("%s: %s", aligned.transcript.file, doubt)


def _sound(found: T | UserError) -> T:
    """Returns what was found, or raises it where it is an error."""
    if isinstance(found, UserError):
        raise found
    return found


def _aligned(emissions: Emissions, known: KnownText, name: Path | str, stars: bool) -> Aligned:
    try:
        return align_text(emissions, known, name, stars=stars)
    except UserError as error:
        raise error.at(name) from None


def _with_wild(log_probs: np.ndarray, known: KnownText) -> np.ndarray:
    """With a column for characters that the vocabulary lacks: the best label's, less a star's penalty."""
    if not (known.ids == known.wild).any():
        return log_probs
    others = np.delete(log_probs, known.blank_id, axis=1)
    return np.concatenate([log_probs, others.max(axis=1, keepdims=True) - STAR_PENALTY], axis=1)


def _clock(seconds: float) -> str:
    """ "1:02:03.4", or "02:03.4" """
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
