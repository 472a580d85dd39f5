"""Reads a recording of any length piece by piece, as mono samples at 16 kHz. It never holds more than a few.

The samples are those that `flax_wavlm.data.audio.read_audio` gives for the whole recording.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from flax_wavlm.data.audio import check_header, check_values, check_whole, opened
from flax_wavlm.data.channels import Mix, Statistics, chosen_mix
from flax_wavlm.data.corpora.utterance import Samples
from flax_wavlm.data.recording import BLOCK, Recording
from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import cannot_read, cannot_write


class Stream:
    """An opened recording, read from its beginning to its end.

    Attributes:
        name: what errors call it.
        seconds: its length by the header; None where the header leaves it open, or only estimates it.
        note: what was decided about its channels, "kind: details"; "" where nothing was.
    """

    def __init__(self, recording: Recording, mix: Mix, name: str, missing_ok: int):
        self.name, self.note = name, mix.note
        self.seconds = None if recording.promised is None else recording.promised / recording.rate
        self._recording, self._mix, self._missing_ok = recording, mix, missing_ok
        self._resampler = _resampler(recording.rate)
        self._frames = 0  # read so far, at the recording's rate
        self._blocks: list[np.ndarray] = []  # read and not given yet
        self._ended = False

    def read(self, count: int) -> np.ndarray:
        """The next samples [N], int16 or float32: `count` of them, and fewer only at the end.

        Raises UserError where the recording cannot be decoded, is cut short, or is no sound.
        """
        while not self._ended and sum(map(len, self._blocks)) < count:
            self._read_block()
        if not self._blocks:
            return np.zeros(0, self._recording.dtype)
        held = np.concatenate(self._blocks) if len(self._blocks) > 1 else self._blocks[0]
        self._blocks = [held[count:]] if len(held) > count else []
        return held[:count]

    def _read_block(self) -> None:
        recording = self._recording
        wanted = max(1, BLOCK // recording.channels)
        if recording.promised is not None:
            wanted = min(wanted, recording.promised - self._frames)
        block = recording.read(wanted) if wanted > 0 else np.zeros((0, recording.channels), recording.dtype)
        self._ended = len(block) == 0
        if self._ended and recording.promised is not None:
            check_whole(self._frames, recording.promised, self._missing_ok, self.name)
        self._frames += len(block)
        if block.dtype == np.int16:
            mono = block[:, 0]
        else:
            check_values(block, self.name)
            mono = self._mix(block)
            if self._resampler is not None:
                mono = self._resampler.resample_chunk(np.ascontiguousarray(mono), last=self._ended)
        if len(mono):
            self._blocks.append(np.ascontiguousarray(mono))


@contextlib.contextmanager
def open_stream(
    source: Path | bytes | Samples, name: str = "", *, missing_ok: int = 0, channel: str = "auto"
) -> Iterator[Stream]:
    """A recording to be read piece by piece. Arguments and errors as `read_audio`'s.

    Where "auto" has channels to choose from, the whole recording is decoded twice: they are judged first.
    """
    name = name or str(source)
    with contextlib.ExitStack() as stack:
        recording = stack.enter_context(opened(source, name))
        check_header(recording, name)
        mix = chosen_mix(channel, recording.channels, name)
        if mix is None:
            mix = _judged(recording, name)
            stack.pop_all().close()
            recording = stack.enter_context(opened(source, name))
        yield Stream(recording, mix, name, missing_ok)


@contextlib.contextmanager
def spooled(stream: IO[bytes], name: str) -> Iterator[Path]:
    """A file on the disk with all bytes of a stream that cannot go back, such as standard input.

    Most containers say at their end what is in them, so they cannot be decoded while they come.

    Raises UserError where the stream cannot be read, or the disk has no room for it.
    """
    with tempfile.NamedTemporaryFile(prefix="flax-wavlm-") as file:
        try:
            shutil.copyfileobj(stream, file, BLOCK)
            file.flush()
        except OSError as error:
            where = tempfile.gettempdir()
            do = f"{where} must have room for all of {name}; the variable TMPDIR names another folder"
            raise cannot_write(where, error, do=do) from None
        except ValueError as error:  # closed
            raise cannot_read(name, error, expected="a recording") from None
        yield Path(file.name)


def _judged(recording: Recording, name: str) -> Mix:
    """What "auto" decides by the whole recording, which is read to its end."""
    seen = Statistics(recording.channels, recording.rate)
    left = recording.promised
    while left is None or left > 0:
        wanted = max(1, BLOCK // recording.channels)
        block = recording.read(wanted if left is None else min(wanted, left))
        if not len(block):
            break
        left = None if left is None else left - len(block)
        check_values(block, name)
        seen.add(block)
    return seen.mix()


def _resampler(rate: int) -> Any:
    """soxr's, at the quality of `read_audio`; None where there is nothing to do."""
    if rate == SAMPLE_RATE:
        return None
    import soxr

    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
