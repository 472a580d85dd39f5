"""Reads any recording, or a part of one, as mono samples at 16 kHz.

libsndfile (soundfile) decodes what it can, PyAV the containers of phones and browsers, soxr resamples.

N  samples of the clip at 16 kHz      C  channels of the recording
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.channels import Mono, to_mono
from flax_wavlm.data.containers import check_no_list, container_of, open_container
from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.recording import MOST_SAMPLES, Recording, Window
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.data.soundfiles import SoundFiles, open_sound
from flax_wavlm.errors import UserError, cannot_read

log = logging.getLogger(__name__)

FEW = SAMPLE_RATE // 100  # samples, 10 ms: the `missing_ok` for speech that somebody wants transcribed

_RATES = (4_000, 768_000)  # Hz; outside, a header is damaged, and resampling might make hours of a second
_LOUDEST = 100.0  # 40 dB above full scale: not a recording, but integers written as floats, or noise
_AROUND = 0.1  # seconds on both sides of a part that resampling sees, as it would in the whole recording


class Part(NamedTuple):
    """What is wanted of a recording, in seconds from its beginning; None: from its beginning, to its end."""

    start: float | None = None
    end: float | None = None


class OutsideFile(UserError):
    """The part lies outside the recording."""


def read_audio(
    source: Path | bytes | Samples,
    name: str = "",
    *,
    missing_ok: int = 0,
    start: float | None = None,
    end: float | None = None,
    channel: str = "auto",
) -> np.ndarray:
    """Samples [N] of a recording or a part of it, mono at 16 kHz.

    Reads by content and not by extension: whatever libsndfile does (RIFF, NIST SPHERE, FLAC, MP3, OGG), and
    with PyAV also m4a, mp4, webm, wma and amr.

    Args:
        source: the file, or the whole file's bytes, or its samples.
        name: what errors call it; a path names itself.
        missing_ok: how many samples may be missing at the end. Training and test data must be whole; somebody
            who wants a transcript is better served with what is there, and a warning.
        start, end: the part, in seconds. The result is what the whole recording's samples from `start` times
            16,000 to `end` times 16,000 are, both rounded. An end may be later than the recording's by
            0.1 s, or 2 % of the part.
        channel: "auto" or "mean", "left", "right", or a number from 0, see `to_mono`. What "auto" decides is
            a warning in the log.

    Returns:
        int16 where the file is 16-bit PCM, mono, 16 kHz: the exact samples in half the memory. Otherwise
        float32 with full scale 1.0, resampled by soxr at its HQ quality.

    Raises:
        UserError: no such file, no permission, not audio, no samples, cut short, NaN or Inf in it, samples
            far beyond full scale, a sample rate that no recording has, no such channel, or no such part.
    """
    name = name or _name(source)
    [found] = read_parts(source, [Part(start, end)], name, missing_ok=missing_ok, channel=channel)
    if isinstance(found, UserError):
        raise found
    if found.note:
        log.warning("%s: %s", name, found.note)
    return found.samples


def read_parts(
    source: Path | bytes | Samples,
    parts: Sequence[Part],
    name: str = "",
    *,
    missing_ok: int = 0,
    channel: str = "auto",
) -> list[Mono | UserError]:
    """`read_audio` for several parts of one recording, which is opened and decoded once.

    Returns, in the order of `parts`, the samples with a note of what was decided, or why there are none.
    """
    name = name or _name(source)
    found: list[Mono | UserError | None] = [None] * len(parts)
    order = sorted(range(len(parts)), key=lambda i: parts[i].start or 0.0)
    try:
        with opened(source, name) as recording:
            check_header(recording, name)
            window = Window(recording)
            for i in order:
                try:
                    found[i] = _read_part(window, recording, parts[i], name, missing_ok, channel)
                except UserError as error:
                    found[i] = error
    except UserError as error:
        return [error if one is None else one for one in found]
    return [one for one in found if one is not None]


def duration_seconds(source: Path | bytes, name: str = "") -> float | None:
    """Length in seconds by the header alone; None where the header leaves it open, or only estimates it.

    Raises UserError as `read_audio` does for a file that cannot be opened.
    """
    with opened(source, name or _name(source)) as recording:
        return None if recording.promised is None else recording.promised / recording.rate


def tolerance(seconds: float) -> float:
    """Seconds by which stated times may differ from a recording's: they are rounded."""
    return max(0.1, 0.02 * seconds)


def _name(source: Path | bytes | Samples) -> str:
    if isinstance(source, Samples):
        return f"<{len(source.samples)} samples>"
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


@contextmanager
def opened(source: Path | bytes | Samples, name: str) -> Iterator[Recording]:
    """A recording, opened by its content. Errors inside the `with` become UserErrors too."""
    if isinstance(source, Samples):
        yield _Held(source, name)
        return
    head = _head(source, name)
    check_no_list(head, name)
    if container_of(head):
        with open_container(source, head, name) as container:
            yield container
    else:
        with open_sound(source, name) as sound:
            yield sound


def _head(source: Path | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source[:4096]
    try:
        with source.open("rb") as file:
            return file.read(4096)
    except OSError as error:
        raise cannot_read(name, error, expected="an audio file") from error
    except ValueError as error:  # a null character in the name
        raise cannot_read(name, error, expected="an audio file") from error


class _Held:
    """Samples that a corpus holds as numbers."""

    def __init__(self, source: Samples, name: str):
        samples = np.asarray(source.samples)
        samples = samples[:, None] if samples.ndim == 1 else samples
        if samples.ndim != 2 or samples.dtype.kind not in "fi":
            raise UserError(
                f"samples of type {samples.dtype} and shape {source.samples.shape}",
                where=name,
                expected="floats or int16 of shape [N] or [N, channels]",
            )
        self.rate, self.channels = int(source.rate), samples.shape[1]
        self.promised: int | None = len(samples)
        whole = samples.dtype == np.int16 and self.channels == 1 and self.rate == SAMPLE_RATE
        self.dtype = "int16" if whole else "float32"
        self._samples, self._at = samples, 0

    def read(self, count: int) -> np.ndarray:
        block = self._samples[self._at : self._at + count]
        self._at += len(block)
        if block.dtype.kind == "i" and self.dtype == "float32":
            return block.astype(np.float32) / np.float32(-float(np.iinfo(block.dtype).min))
        return block.astype(self.dtype, copy=False)

    def skip_to(self, frame: int) -> bool:
        self._at = frame
        return True


# --- A part -------------------------------------------------------------------------------------------------


def _read_part(
    window: Window, recording: Recording, part: Part, name: str, missing_ok: int, channel: str
) -> Mono:
    whole = part.start is None and part.end is None
    samples, wanted, before = (
        _whole(window, recording, name, missing_ok)
        if whole
        else _range(window, recording, part, name, missing_ok)
    )
    if samples.dtype == np.int16:
        mono = Mono(samples[:, 0], "")
        if channel not in ("auto", "mean"):
            to_mono(samples[:1], SAMPLE_RATE, channel, name)  # which the only channel must be
    else:
        check_values(samples, name)
        mono = to_mono(samples, recording.rate, channel, name)
    clip = mono.samples
    if recording.rate != SAMPLE_RATE and len(clip):
        import soxr

        clip = soxr.resample(clip, recording.rate, SAMPLE_RATE, quality="HQ")
    clip = clip[before:] if wanted is None else clip[before : before + wanted]
    if len(clip) == 0:
        raise UserError(
            "the audio file has 0 samples", where=name, expected="speech", do="remove the clip from the data"
        )
    return Mono(np.ascontiguousarray(clip), mono.note)


def _whole(
    window: Window, recording: Recording, name: str, missing_ok: int
) -> tuple[np.ndarray, int | None, int]:
    """All frames; then, as `_range`, how many samples are wanted, None: all, and how many stand before."""
    most = MOST_SAMPLES // recording.channels
    samples = window.read(0, most if recording.promised is None else min(recording.promised, most) + 1)
    if len(samples) >= most:
        raise UserError(
            f"more than {most / recording.rate / 3600:.1f} hours",
            where=name,
            expected="less in one clip",
            do="cut it up, or name parts of it by start and end",
        )
    if recording.promised is not None:
        samples = samples[: recording.promised]
        check_whole(len(samples), recording.promised, missing_ok, name)
    return samples, None, 0


def _range(
    window: Window, recording: Recording, part: Part, name: str, missing_ok: int
) -> tuple[np.ndarray, int | None, int]:
    """The frames of a part and those around it that resampling sees.

    Also how many samples at 16 kHz the part has, and how many stand before them.
    """
    start, end, rate = part.start or 0.0, part.end, recording.rate
    if not 0 <= start < math.inf or not (end is None or start < end < math.inf):
        raise OutsideFile(
            f"from {start:g} s to {'the end' if end is None else f'{end:g} s'}",
            where=name,
            expected="a start of at least 0 s, and an end after it",
        )
    first = round(start * SAMPLE_RATE)
    wanted = None if end is None else round(end * SAMPLE_RATE) - first
    # Resampling begins at a time that both rates have a sample at, so that both grids stay as they are.
    unit = rate // math.gcd(rate, SAMPLE_RATE)
    around = _AROUND if rate != SAMPLE_RATE else 0.0
    begin = max(0, int((start - around) * rate)) // unit * unit
    before = first - begin * SAMPLE_RATE // rate
    most = MOST_SAMPLES // recording.channels
    count = most if end is None else math.ceil((end + around) * rate) + 1 - begin
    if count > most:
        raise OutsideFile(f"of {(end or 0) - start:g} s", where=name, expected="a shorter part")
    samples = window.read(begin, count)
    if recording.promised is not None and begin + len(samples) < min(recording.promised, begin + count):
        check_whole(begin + len(samples), recording.promised, missing_ok, name)
    found = (begin + len(samples)) / rate
    slack = 0.0 if end is None else tolerance(end - start)
    if found <= start or (end is not None and found < end - slack):
        there = "ends before" if not len(samples) else f"is {found:.2f} s long"
        raise OutsideFile(
            f"from {start:g} s to {'the end' if end is None else f'{end:g} s'}",
            where=name,
            expected=f"a part of the recording, which {there}",
        )
    return samples, wanted, before


def check_header(recording: Recording, name: str) -> None:
    """UserError for a header that no recording has."""
    if isinstance(recording, SoundFiles) and recording.open_ended:
        raise UserError(
            "the header leaves the length open (a FLAC stream written into a pipe)",
            where=name,
            expected="a number of samples",
            do="convert the file, for example with `ffmpeg -i IN OUT.flac`",
        )
    if not _RATES[0] <= recording.rate <= _RATES[1]:
        raise UserError(
            where=name,
            field="sample rate",
            found=recording.rate,
            expected=f"{_RATES[0]} to {_RATES[1]} Hz",
            do="the header is damaged or not a recording's, so copy or convert the file again",
        )


def check_whole(found: int, promised: int, missing_ok: int, name: str) -> None:
    """UserError where more than `missing_ok` samples are missing; a warning where fewer are."""
    if found >= promised:
        return
    error = UserError(
        "the audio is cut short",
        where=name,
        found=found,
        expected=f"the {promised} samples of its header",
        do="copy or download the file again, as binary: a copy in text mode loses bytes here and there, and "
        "what follows a lost byte is noise",
    )
    if found < promised - missing_ok:
        raise error
    log.warning("%s", error)


def check_values(samples: np.ndarray, name: str) -> None:
    """UserError for floats [N, channels] that are no sound."""
    if bad := samples.size - np.count_nonzero(np.isfinite(samples)):
        raise UserError(
            f"{bad} samples are NaN or Inf",
            where=name,
            expected="finite ones",
            do="write the file again, or remove the clip from the data",
        )
    if len(samples) and (loudest := float(np.abs(samples).max())) > _LOUDEST:
        raise UserError(
            f"samples of up to {loudest:.3g}",
            where=name,
            expected="floats with a full scale of 1.0",
            do="divide integers that were written as floats by their full scale (32768 for 16 bits)",
        )
