"""A recording and its text: when each word of the text was said, and how surely it was.

T  frames      V  labels of the model      N  samples at 16 kHz
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from flax_wavlm.data.audio import FEW, read_audio
from flax_wavlm.data.clips import Clip, decode_audio, describe_skipped
from flax_wavlm.data.corpora.utterance import Samples, Skipped, Utterance
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, some
from flax_wavlm.recognition.alignment import STAR_PENALTY, align_labels
from flax_wavlm.recognition.forward import ClipBatches, forward_pass, jit_over_batches, run_over
from flax_wavlm.recognition.known_text import KnownText, known_text, timed_characters, timed_words
from flax_wavlm.recognition.recogniser import Recogniser
from flax_wavlm.recognition.transcript import TimedLabels, Transcript, Word

log = logging.getLogger(__name__)

UNLIKELY = 0.1  # a word of less confidence is named: it may not have been said
LEAST_ABSENT = 0.3  # seconds of speech that the text lacks; less is a sound that the model takes for another


class Emissions(NamedTuple):
    """What the model says of each frame of a recording."""

    log_probs: np.ndarray  # float32 [T, V]
    seconds_per_frame: float
    duration: float  # seconds

    def seconds(self, frames: np.ndarray) -> np.ndarray:
        """The times of frames, of any shape."""
        return np.minimum(frames * self.seconds_per_frame, self.duration)


def emissions(recogniser: Recogniser, source: Path | Samples, *, channel: str = "auto") -> Emissions:
    """Those of a recording, which is heard in pieces of 20 s."""
    samples = read_audio(source, missing_ok=FEW, channel=channel)
    least, size, config = recogniser.config.min_samples, 20 * SAMPLE_RATE, recogniser.config
    pieces = [samples[i : i + size] for i in range(0, len(samples), size)]
    if len(pieces) > 1 and len(pieces[-1]) < least:
        pieces[-2:] = [np.concatenate(pieces[-2:])]
    clips = [
        Clip(str(i), piece, labels=np.zeros(0, np.int32), text="", speaker="")
        for i, piece in enumerate(pieces)
    ]
    forward = forward_pass(recogniser.task, config)

    def log_probs(params, batch):  # type: ignore
        logits, lengths = forward(params, batch)
        return batch["clip"], jax.nn.log_softmax(logits), lengths

    found = [np.zeros((0, config.vocab_size), np.float32)] * len(pieces)
    batches = ClipBatches(clips, 8, 1, do_normalize=recogniser.preprocessor.do_normalize)
    function = jit_over_batches(log_probs, recogniser.mesh)
    hop = int(np.prod(config.conv_stride))
    for rows, batch, lengths in run_over(
        function, recogniser.params, batches, recogniser.mesh, field="batch_size"
    ):
        for row, log_prob, length in zip(rows, batch, lengths, strict=True):
            if row >= 0:
                whole = np.full((max(length, len(pieces[row]) // hop), log_prob.shape[1]), -20.0, np.float32)
                whole[:, recogniser.tokenizer.blank_id] = 0.0
                whole[:length] = log_prob[:length]
                found[row] = whole
    return Emissions(np.concatenate(found), hop / SAMPLE_RATE, len(samples) / SAMPLE_RATE)


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
        if words := self.unlikely:
            places = [f"{word.word} ({_clock(word.start)})" for word in words]
            found.append(f"words that were hardly said: {some(places)}")
        if len(self.absent):
            places = [f"{_clock(begin)} to {_clock(end)}" for begin, end in self.absent.tolist()]
            found.append(f"speech that the text lacks: {some(places)}")
        return found


def align_text(emissions: Emissions, known: KnownText, file: Path | str, *, stars: bool = True) -> Aligned:
    """When a text was said, from what the model says of each frame.

    Args:
        file: what the transcript calls the recording.
        stars: speech that the text lacks may stand before, behind and between its words.
    Raises:
        UserError: the recording is too short for the text.
    """
    log_probs = _with_wild(emissions.log_probs, known)
    found = align_labels(log_probs, known.ids, known.blank_id, stars=known.stars if stars else None)
    frames = np.diff(found.frames, axis=1)[:, 0]
    labels = TimedLabels(known.ids, emissions.seconds(found.frames), found.confidences, frames)
    said = np.where(known.delimiters, 0, frames)
    transcript = Transcript(
        file,
        known.text,
        emissions.duration,
        timed_words(known, labels),
        timed_characters(known, labels),
        float(np.average(labels.confidences, weights=said)),
    )
    absent = emissions.seconds(found.absent)
    return Aligned(transcript, absent[absent[:, 1] - absent[:, 0] >= LEAST_ABSENT], known)


def align_recording(
    recogniser: Recogniser,
    audio: Path | Samples,
    text: str,
    *,
    text_name: Path | str = "",
    stars: bool = True,
    channel: str = "auto",
) -> Aligned:
    """When each word of a text was said in a recording of any length.

    Args:
        audio: a file, or samples with their rate.
        text: what is said; it goes through the tokenizer's text rule.
        text_name: what messages call the text.
        stars: as for `align_text`.
        channel: of recordings with several, see `read_audio`.
    Raises:
        UserError: the recording cannot be read, the text has nothing that the model can say, or the
            recording is too short for the text.
    """
    name = audio if isinstance(audio, Path) else "the recording"
    known = known_text(recogniser.tokenizer, text, str(text_name or f"the text of {name}"))
    return _aligned(emissions(recogniser, audio, channel=channel), known, name, stars)


def align_utterances(
    recogniser: Recogniser,
    utterances: Sequence[Utterance],
    unusable: Sequence[Skipped] = (),
    *,
    name: str,
    stars: bool = True,
    channel: str = "auto",
) -> Iterator[Transcript]:
    """The same of each clip of a corpus, in their order; one that cannot be aligned says why.

    Args:
        unusable: what the corpus's reader could not use; the log names it.
        name: what messages call the clips.
        stars, channel: as for `align_recording`.
    """
    if unusable:
        log.warning("%s: %s", name, describe_skipped(unusable))
    doubts = []
    audio = decode_audio(utterances, threads=None, cache=None, name=name, channel=channel)
    for utterance, samples in zip(utterances, audio, strict=True):
        id = utterance.id
        try:
            if isinstance(samples, UserError):
                raise samples
            known = known_text(recogniser.tokenizer, utterance.text, f"the text of {id}")
            aligned = _aligned(emissions(recogniser, Samples(samples, SAMPLE_RATE)), known, id, stars)
        except UserError as error:
            yield Transcript(id, error=error)
            continue
        doubts += [Skipped(id, doubt) for doubt in aligned.doubts()]
        yield aligned.transcript
    if doubts:
        log.warning("%s: %s", name, describe_skipped(doubts, verb="in doubt"))


def report(aligned: Aligned) -> None:
    """Says in the log what the text and the recording do not have in common."""
    for doubt in aligned.doubts():
        log.warning("%s: %s", aligned.transcript.file, doubt)


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
