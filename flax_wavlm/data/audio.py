"""Reads any audio file as mono samples at 16 kHz, through libsndfile (soundfile) and soxr.

N  samples of the clip at 16 kHz
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, cannot_read

log = logging.getLogger(__name__)

FEW = SAMPLE_RATE // 100  # samples, 10 ms: the `missing_ok` for speech that somebody wants transcribed

_RATES = (4_000, 768_000)  # Hz; outside, a header is damaged, and resampling might make hours of a second
_LOUDEST = 100.0  # 40 dB above full scale: not a recording, but integers written as floats, or noise
_BLOCK = 2**20  # samples that are read at a time: a damaged header may promise terabytes
_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's SF_COUNT_MAX: a FLAC stream whose header leaves the length open
# libsndfile shortens a truncated RIFF, AIFF or AU file's length in silence, and notes it only in its log.
_SHORTENED = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFF_0000  # from here up, the size is the placeholder of a program that wrote into a pipe
_NIST_SAMPLE_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)


def read_audio(source: Path | bytes, name: str = "", *, missing_ok: int = 0) -> np.ndarray:
    """Samples [N] of an audio file, mono at 16 kHz.

    Reads whatever libsndfile does, by content and not by extension: RIFF, NIST SPHERE, FLAC, MP3, OGG.

    Args:
        source: the file, or the whole file's bytes.
        name: what errors call it; a path names itself.
        missing_ok: how many samples may be missing at the end. Training and test data must be whole; somebody
            who wants a transcript is better served with what is there, and a warning.

    Returns:
        int16 where the file is 16-bit PCM, mono, 16 kHz: the exact samples in half the memory. Otherwise
        float32 with full scale 1.0: the mean of the channels, resampled by soxr at its HQ quality.

    Raises:
        UserError: no such file, no permission, not audio, no samples, cut short, NaN or Inf in it, samples
            far beyond full scale, or a sample rate that no recording has.
    """
    name = name or _name(source)
    with _open(source, name) as (file, head):
        rate = file.samplerate
        _check_header(file, name)
        exact = file.subtype == "PCM_16" and file.channels == 1 and rate == SAMPLE_RATE
        samples = _read_all(file, "int16" if exact else "float32")
        promised = _promised_frames(file, head)
    _check_whole(len(samples), promised, missing_ok, name)
    if not exact:
        _check_values(samples, name)
    mono = samples[:, 0] if exact else samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        import soxr

        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if len(mono) == 0:
        raise UserError(
            "the audio file has 0 samples", where=name, expected="speech", do="remove the clip from the data"
        )
    return mono


def duration_seconds(source: Path | bytes, name: str = "") -> float | None:
    """Length in seconds by the header alone; None where the header leaves it open (a streamed FLAC).

    Raises UserError as `read_audio` does for a file that cannot be opened.
    """
    with _open(source, name or _name(source)) as (file, _):
        return None if file.frames == _UNKNOWN_LENGTH else file.frames / file.samplerate


def _name(source: Path | bytes) -> str:
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)


class _Bytes(io.BytesIO):
    """Seeks to before the start go to the start: libsndfile asks for that in damaged files."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return super().seek(0)


def _read_all(file: soundfile.SoundFile, dtype: str) -> np.ndarray:
    """All samples [N, channels], at most the number that libsndfile found in the header."""
    blocks, missing = [], file.frames
    while missing > 0:
        block = file.read(min(missing, max(1, _BLOCK // file.channels)), dtype=dtype, always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        missing -= len(block)
    if not blocks:
        return np.zeros((0, file.channels), dtype)
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


@contextmanager
def _open(source: Path | bytes, name: str) -> Iterator[tuple[soundfile.SoundFile, bytes]]:
    """The opened file and its first 1,024 bytes; errors inside the `with` become UserErrors too."""
    try:
        # FileIO is unbuffered: libsndfile then finds the descriptor where we left it.
        with _Bytes(source) if isinstance(source, bytes) else io.FileIO(source) as stream:
            head = stream.read(1024)
            if not head:
                raise UserError(
                    "the file is empty", where=name, expected="audio", do="copy or download it again"
                )
            stream.seek(0)
            # By descriptor: by name, soundfile would take a .raw extension for headerless samples.
            handle = stream if isinstance(source, bytes) else stream.fileno()
            with soundfile.SoundFile(handle, closefd=False) as file:
                yield file, head
    except OSError as error:
        raise cannot_read(name, error, expected="an audio file") from error
    except soundfile.SoundFileError as error:
        raise UserError(
            f"libsndfile cannot decode it ({getattr(error, 'error_string', error)})",
            where=name,
            expected="a whole WAV, NIST SPHERE, FLAC, MP3 or OGG file",
            do="copy it again, or convert it to WAV",
        ) from error


def _check_header(file: soundfile.SoundFile, name: str) -> None:
    if file.frames == _UNKNOWN_LENGTH:
        raise UserError(
            "the header leaves the length open (a FLAC stream written into a pipe)",
            where=name,
            expected="a number of samples",
            do="convert the file, for example with `ffmpeg -i IN OUT.flac`",
        )
    if not _RATES[0] <= file.samplerate <= _RATES[1]:
        raise UserError(
            where=name,
            field="sample rate",
            found=file.samplerate,
            expected=f"{_RATES[0]} to {_RATES[1]} Hz",
            do="the header is damaged or not a recording's, so copy or convert the file again",
        )


def _check_whole(found: int, promised: int, missing_ok: int, name: str) -> None:
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


def _check_values(samples: np.ndarray, name: str) -> None:
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


def _promised_frames(file: soundfile.SoundFile, head: bytes) -> int:
    """The number of frames that the header states; libsndfile's own may be the number that is there."""
    if head.startswith(b"NIST_1A") and (count := _NIST_SAMPLE_COUNT.search(head)):
        return int(count[1])
    if shortened := _SHORTENED.search(file.extra_info):
        stated, present = int(shortened[1]), int(shortened[2])
        # Both in bytes, and the compression is constant: scale the frames that libsndfile found.
        if present > 0 and stated < _STREAMED:
            return file.frames * stated // present
    return file.frames
