"""Utterances to clips: decodes audio once, encodes text, and says why a clip cannot be used.

N  samples of a clip at 16 kHz      L  labels of a clip
"""

import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from flax_wavlm.data.audio import OutsideFile, Part, read_parts, tolerance
from flax_wavlm.data.cache import cached, file_identity
from flax_wavlm.data.channels import Mono
from flax_wavlm.data.corpora.utterance import Skipped, Utterance
from flax_wavlm.data.preprocessor import mean_and_scale
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.targets import Targets
from flax_wavlm.errors import UserError, printable
from flax_wavlm.progress import tracked

log = logging.getLogger(__name__)

LONG_SECONDS = 60  # longer clips are announced


@dataclass(frozen=True, eq=False)
class Clip:
    """One decoded utterance that can be trained on or evaluated."""

    id: str
    samples: np.ndarray  # int16 or float32 [N], mono, 16 kHz
    labels: np.ndarray  # int32 [L], no blanks
    text: str  # the normalised reference
    speaker: str

    @functools.cached_property
    def mean_and_scale(self) -> tuple[np.float32, np.float32]:
        """See `flax_wavlm.data.preprocessor.mean_and_scale`; computed once."""
        return mean_and_scale(self.samples)


def usable_clips(
    utterances: Sequence[Utterance],
    tokenizer: Targets,
    *,
    frame_count: Callable[[int], int],
    name: str = "clips",
    max_seconds: float | None = None,
    drop_infeasible: bool = True,
    threads: int | None = None,
    cache: Path | None = None,
    channel: str = "auto",
) -> tuple[list[Clip], list[Skipped]]:
    """Decodes every utterance once, in parallel, and keeps the order.

    The log says what was skipped and why, which clips only an evaluation keeps, and which are so long that
    memory may not suffice.

    Args:
        frame_count: the model's frames for a number of samples.
        name: what messages call the utterances: the split.
        max_seconds: skip clips of this length *and longer* (the seed's recipe: shorter than 4.0 s).
        drop_infeasible: skip clips that nothing can be learnt from, see `unlearnable`. For training. An
            evaluation keeps them, because it must not choose its test set: their text is scored like any
            other, and the loss masks those whose labels do not fit.
        threads: None = what `ThreadPoolExecutor` chooses.
        cache: the folder to keep decoded audio in, see `decode_audio`; None = in memory.
        channel: of recordings with several, see `read_audio`.
    Returns:
        The clips, and each clip that cannot be used with its reason, "kind: details".
    Raises:
        UserError: no clip is left.
    """
    audio = decode_audio(utterances, threads=threads, cache=cache, name=name, channel=channel)
    judged = [
        _judge(utterance, samples, tokenizer, frame_count, max_seconds, drop_infeasible)
        for utterance, samples in zip(utterances, audio, strict=True)
    ]
    clips = [clip for clip in judged if isinstance(clip, Clip)]
    skipped = [clip for clip in judged if isinstance(clip, Skipped)]
    _report(name, clips, skipped, tokenizer, frame_count)
    if not clips:
        raise UserError(
            f"none of the {len(utterances)} clips can be used", where=name, do="see the reasons above"
        )
    return clips, skipped


def _judge(
    utterance: Utterance,
    samples: np.ndarray | UserError,
    tokenizer: Targets,
    frame_count: Callable[[int], int],
    max_seconds: float | None,
    drop_infeasible: bool,
) -> Clip | Skipped:
    """The clip of one utterance, or why it cannot be used. Arguments as for `usable_clips`."""
    text = tokenizer.normalise(utterance.text)
    if not text:
        return Skipped(utterance.id, f"no text after normalisation: {utterance.text!r}")
    try:
        labels = np.asarray(tokenizer.encode(text), np.int32)
    except UserError as error:
        return Skipped(utterance.id, f"unusable text: {error}")
    if isinstance(samples, OutsideFile):
        return Skipped(utterance.id, f"part outside the file: {samples}")
    if isinstance(samples, UserError):
        return Skipped(utterance.id, f"unreadable audio: {samples}")
    if reason := _contradicted(utterance, len(samples) / SAMPLE_RATE):
        return Skipped(utterance.id, reason)
    if len(samples) >= (math.inf if max_seconds is None else max_seconds * SAMPLE_RATE):
        seconds = len(samples) / SAMPLE_RATE
        return Skipped(utterance.id, f"too long: {seconds:.2f} s, must be under {max_seconds:g} s")
    frames = frame_count(len(samples))
    if frames < 1:
        return Skipped(utterance.id, f"too short: {len(samples)} samples make no frame")
    clip = Clip(utterance.id, samples, labels, text, utterance.speaker)
    if drop_infeasible and (reason := unlearnable(clip, tokenizer, frames)):
        return Skipped(utterance.id, reason)
    return clip


def _contradicted(utterance: Utterance, seconds: float) -> str:
    """Why the stated duration cannot be that of the decoded audio; "" where it can."""
    stated = utterance.duration
    if stated is None or abs(stated - seconds) <= tolerance(stated):
        return ""
    there = "in the part" if utterance.start is not None or utterance.end is not None else "in the file"
    return (
        f"stated duration: {stated:.2f} s stated, {seconds:.2f} s {there}, so the text may be a part's; "
        "give its start and end, or correct the duration"
    )


def unlearnable(clip: Clip, tokenizer: Targets, frames: int) -> str:
    """Why nothing can be learnt from a clip of `frames` frames, "kind: details"; "" where something can.

    Either its labels do not fit its frames, or it is silent (all zeros, or no more than dither), or most of
    its text is outside the vocabulary.
    """
    needed = min_ctc_frames(clip.labels)
    if needed > frames:
        return f"labels longer than frames: {needed} frames needed, {frames} there"
    step = 1 if clip.samples.dtype == np.int16 else 1 / 32768
    if float(clip.samples.max()) - float(clip.samples.min()) <= 2 * step:
        return f"silent: {len(clip.samples)} samples, all but equal"
    if (share := tokenizer.unknown_share(clip.text)) > 0.5:
        return f"text outside the vocabulary: {share:.0%} of {clip.text[:60]!r}"
    return ""


def min_ctc_frames(labels: np.ndarray) -> int:
    """Fewest frames in which CTC can say `labels` [L]: equal neighbours need a blank between them."""
    return len(labels) + int(np.count_nonzero(labels[1:] == labels[:-1]))


def decode_audio(
    utterances: Sequence[Utterance],
    *,
    threads: int | None,
    cache: Path | None,
    name: str,
    channel: str = "auto",
) -> Iterable[np.ndarray | UserError]:
    """Each utterance's samples as `read_audio` gives them, or the reason why there are none, in order.

    Utterances that are parts of one file are decoded together, from one opening of it. Decisions about
    channels are gathered into a warning at the end.

    With a `cache`, samples are kept there in the type that they have (int16, or float32 where the file is not
    16-bit PCM at 16 kHz), under a name that changes with the parts, with `channel`, and with any file's name,
    size or time of change. A file that could not be read is tried again every time. Utterances whose audio is
    not a file (a dataset of the hub) are not cached, because nothing tells reliably that they are the same
    ones.
    """

    def decoded() -> Iterator[Mono | UserError]:
        return tracked(_decode_all(utterances, threads, channel), f"{name}: decoding", len(utterances))

    if cache is None:
        return _samples(name, utterances, decoded())
    files = [utterance.audio for utterance in utterances if isinstance(utterance.audio, Path)]
    if len(files) < len(utterances):
        log.info("%s: decoded in memory, since its audio is not in files of its own", name)
        return _samples(name, utterances, decoded())

    def make() -> Iterator[np.ndarray | None]:
        notes = []
        for found in decoded():
            notes.append(found.note if isinstance(found, Mono) else "")
            yield found.samples if isinstance(found, Mono) else None
        yield np.frombuffer(json.dumps(notes).encode(), np.uint8)

    libraries = [soundfile.__libsndfile_version__]
    parts = [[utterance.start, utterance.end] for utterance in utterances]
    depends_on = ["read_parts", SAMPLE_RATE, libraries, channel, parts, *map(file_identity, files)]
    *kept, notes = cached(cache, name, depends_on, make)
    assert notes is not None
    return _samples(name, utterances, _from_cache(utterances, kept, json.loads(notes.tobytes()), channel))


def _from_cache(
    utterances: Sequence[Utterance],
    kept: Sequence[np.ndarray | None],
    notes: Sequence[str],
    channel: str,
) -> Iterator[Mono | UserError]:
    for utterance, samples, note in zip(utterances, kept, notes, strict=True):
        yield _decode([utterance], channel)[0] if samples is None else Mono(samples, note)


def _samples(
    name: str, utterances: Sequence[Utterance], decoded: Iterator[Mono | UserError]
) -> Iterator[np.ndarray | UserError]:
    """The samples alone; the notes are in the log at the end."""
    notes = []
    for utterance, found in zip(utterances, decoded, strict=True):
        if isinstance(found, Mono) and found.note:
            notes.append(Skipped(utterance.id, found.note))
        yield found.samples if isinstance(found, Mono) else found
    if notes:
        log.warning("%s: %s", name, describe_skipped(notes, verb="decided for"))


def _decode_all(
    utterances: Sequence[Utterance], threads: int | None, channel: str
) -> Iterator[Mono | UserError]:
    """What `_decode` gives of every utterance, in order; those of one file together."""
    together: dict[Path | int, list[int]] = {}
    for i, utterance in enumerate(utterances):
        together.setdefault(utterance.audio if isinstance(utterance.audio, Path) else i, []).append(i)
    place = {i: (n, at) for n, group in enumerate(together.values()) for at, i in enumerate(group)}
    with ThreadPoolExecutor(threads) as pool:
        groups = [
            pool.submit(_decode, [utterances[i] for i in group], channel) for group in together.values()
        ]
        left = [len(group) for group in together.values()]
        for i in range(len(utterances)):
            n, at = place[i]
            yield groups[n].result()[at]
            left[n] -= 1
            if not left[n]:
                groups[n] = Future()  # lets go of the samples


def _decode(utterances: Sequence[Utterance], channel: str) -> list[Mono | UserError]:
    """The audio of utterances that are parts of one recording."""
    first = utterances[0]
    parts = [Part(utterance.start, utterance.end) for utterance in utterances]
    try:
        if isinstance(first.audio, Path):
            return read_parts(first.audio, parts, channel=channel)
        return read_parts(first.audio(), parts, first.id, channel=channel)
    except UserError as error:
        return [error] * len(utterances)


def _report(
    name: str,
    clips: Sequence[Clip],
    skipped: Sequence[Skipped],
    tokenizer: Targets,
    frame_count: Callable[[int], int],
) -> None:
    """Logs what `usable_clips` promises."""
    if skipped:
        log.warning("%s: %s", name, describe_skipped(skipped))
    doubtful = [
        Skipped(clip.id, reason)
        for clip in clips
        if (reason := unlearnable(clip, tokenizer, frame_count(len(clip.samples))))
    ]
    if doubtful:
        log.warning("%s: %s", name, describe_skipped(doubtful, verb="kept in the evaluation"))
    if long := [clip for clip in clips if len(clip.samples) > LONG_SECONDS * SAMPLE_RATE]:
        log.warning(
            "%s: %d clips of more than %d s, such as %s: memory grows with the square of the longest",
            name,
            len(long),
            LONG_SECONDS,
            long[0].id,
        )
    if unknown := set().union(*(tokenizer.unknown_characters(clip.text) for clip in clips)):
        log.warning("%s: characters outside the vocabulary, read as unknown: %s", name, sorted(unknown))


def describe_skipped(skipped: Sequence[Skipped], examples: int = 3, verb: str = "skipped") -> str:
    """One line for each kind of reason, the most frequent first; "" if nothing was skipped.

    The kind is what stands before the reason's first colon.
    """
    kinds: dict[str, list[Skipped]] = {}
    for clip in skipped:
        kinds.setdefault(clip.reason.partition(":")[0], []).append(clip)
    lines = []
    for kind, clips in sorted(kinds.items(), key=lambda item: -len(item[1])):
        shown = ", ".join(printable(clip.id) for clip in clips[:examples])
        more = ", ..." if len(clips) > examples else ""
        details = clips[0].reason.partition(":")[2]
        first = f" (the first:{printable(details)})" if details else ""
        lines.append(f"{verb} {len(clips):,} - {kind}: {shown}{more}{first}")
    return "\n".join(lines)
