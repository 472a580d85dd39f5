"""Recordings in the containers of phones and browsers (m4a, mp4, webm, wma, amr), through PyAV.

PyAV is the extra `av`: `pip install 'flax-wavlm[av]'`. Its wheels hold FFmpeg with codecs under the GPL, so
it is no dependency, and whoever passes it on passes on those.

FFmpeg is a program of many protocols: a text file called .m4a may make it open other files and addresses. So
it is given an open file, never a name, and the one container that the first bytes say; playlists are refused.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flax_wavlm.data.recording import BLOCK
from flax_wavlm.errors import UserError, cannot_read, reason

# First bytes, what people call it, and FFmpeg's name of the container.
_CONTAINERS = (
    (re.compile(rb"....(?:ftyp|moov|mdat|wide|free|skip|pnot)", re.DOTALL), "MP4, M4A, 3GP or MOV", "mov"),
    (re.compile(rb"\x1a\x45\xdf\xa3"), "WebM or Matroska", "matroska"),
    (re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "WMA (ASF)", "asf"),
    (re.compile(rb"#!AMR(?:-WB)?\n"), "AMR", "amr"),
    (re.compile(rb"\xff[\xf0\xf1\xf8\xf9]"), "AAC", "aac"),
    (re.compile(rb"RIFF....AVI ", re.DOTALL), "AVI", "avi"),
    (re.compile(rb"FLV\x01"), "FLV", "flv"),
    (re.compile(rb"\x47.{187}\x47", re.DOTALL), "MPEG transport stream", "mpegts"),
)
# Files that name other files or addresses.
_LISTS = re.compile(
    rb"\s*(?:#(?!EXTM3U|!AMR)[^\n]*\n\s*)*(?:ffconcat|#EXTM3U|\[playlist\]|<asx|\[Reference\]|v=0\r?\n|RTSPtext|<\?wpl|"
    rb"(?:<\?xml[^>]*>\s*(?:<!--.*?-->\s*)*)?<(?:MPD|SmoothStreamingMedia|smil|playlist|asx)\b|"
    rb"(?:REM [^\n]*\n\s*|(?:PERFORMER|TITLE|CATALOG) [^\n]*\n\s*)*FILE \"|"
    rb"(?:file|https?|rtsp|rtmp|ftp|concat|subfile|data)(?::| ['\"/]))",
    re.IGNORECASE | re.DOTALL,
)
_DURATION = b"\x44\x89"  # Matroska's element
_ROUNDED = 0.5  # seconds that a stated length may be longer: encoders fill up, headers round
_CONVERT = "convert it with `ffmpeg -i IN -ac 1 -ar 16000 OUT.wav`"


def check_no_list(head: bytes, name: str) -> None:
    """UserError where a file's first bytes are those of a playlist, a cue sheet or a list of parts."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = text[2:].replace(b"\0", b"")
    if _LISTS.match(text):
        raise UserError(
            "a list that names other files or addresses, and no audio",
            where=name,
            expected="a recording",
            do="give the recordings that it names",
        )


def container_of(head: bytes) -> tuple[str, str] | None:
    """What people call the container that begins with these bytes, and FFmpeg's name; None: not known."""
    return next(((title, form) for pattern, title, form in _CONTAINERS if pattern.match(head)), None)


class _Container:
    """The first audio stream of an open container."""

    dtype = "float32"
    promised: int | None = None  # headers round, and count what edit lists remove

    def __init__(self, opened: Any, name: str, least: float):
        """`least`: the seconds that there must be."""
        import av

        self._name = name
        stream = opened.streams.audio[0]
        self.rate, self.channels = int(stream.rate), int(stream.channels)
        self._resampler = av.AudioResampler(format="flt", layout=stream.layout, rate=self.rate)
        self._blocks = self._decoded(opened, stream)
        self._left = np.zeros((0, self.channels), np.float32)
        self._least, self._decoded_frames = int(least * self.rate), 0

    def _decoded(self, opened: Any, stream: Any) -> Iterator[np.ndarray]:
        for frame in opened.decode(stream):
            if (frame.sample_rate, len(frame.layout.channels)) != (self.rate, self.channels):
                raise UserError(
                    f"its audio changes to {frame.sample_rate} Hz with {len(frame.layout.channels)} channels",
                    where=self._name,
                    expected=f"{self.rate} Hz with {self.channels} throughout",
                    do=_CONVERT,
                )
            for converted in self._resampler.resample(frame):
                yield converted.to_ndarray().reshape(-1, self.channels)

    def read(self, count: int) -> np.ndarray:
        """The next frames [N, C]; none at the end."""
        blocks, there = [self._left], len(self._left)
        with _own_errors(self._name):
            while there < min(count, BLOCK) and (block := next(self._blocks, None)) is not None:
                blocks.append(block)
                there += len(block)
                self._decoded_frames += len(block)
        if there < min(count, BLOCK) and self._decoded_frames < self._least:
            raise UserError(
                "the audio is cut short",
                where=self._name,
                found=self._decoded_frames,
                expected=f"the {self._least} samples of its header, or more",
                do="copy or download the file again",
            )
        found = np.concatenate(blocks)
        self._left = found[count:]
        return found[:count]

    def skip_to(self, frame: int) -> bool:
        """Never: containers find only whole packets."""
        return False


def _stated_seconds(opened: Any, form: str, head: bytes) -> float:
    """What the header says of the audio's length, 0 where it says nothing, or of pictures too."""
    import av

    says = form == "mov" or (form == "matroska" and _DURATION in head)  # else FFmpeg estimates it
    if not says or len(opened.streams) > 1 or opened.duration is None:
        return 0.0
    stream = opened.streams.audio[0]
    of_stream = math.inf if stream.duration is None else float(stream.duration * stream.time_base)
    return min(opened.duration / av.time_base, of_stream)  # an edit list may leave some of it out


@contextmanager
def _own_errors(name: str) -> Iterator[None]:
    import av

    try:
        yield
    except UserError:
        raise
    except (av.FFmpegError, ValueError, IndexError, OverflowError, ZeroDivisionError, MemoryError) as error:
        raise UserError(
            f"FFmpeg cannot decode it ({reason(error)})",
            where=name,
            expected="a whole recording",
            do="copy or download it again",
        ) from error


def _check_audio(opened: Any, title: str, name: str) -> None:
    """UserError where an open container has no audio that can be decoded."""
    if not opened.streams.audio:
        raise UserError(f"{title} without audio", where=name, expected="an audio stream", do="leave it out")
    stream = opened.streams.audio[0]
    known = stream.codec_context is not None
    if not known or not stream.rate or not stream.channels:
        raise UserError(
            f"{title} with audio " + ("without rate or channels" if known else "of an unknown codec"),
            where=name,
            expected="a whole recording",
            do="copy or download it again",
        )


@contextmanager
def open_container(source: Path | bytes, head: bytes, name: str) -> Iterator[_Container]:
    """A container's first audio stream, opened.

    Raises UserError where PyAV is missing, the file is damaged, or it has no audio.
    """
    known = container_of(head)
    assert known is not None
    title, form = known
    try:
        import av
    except ImportError as error:
        raise UserError(
            f"{title} is read by PyAV, which is not installed",
            where=name,
            expected="PyAV, or a WAV, FLAC, OGG or MP3 file",
            do=f"`pip install 'flax-wavlm[av]'`, or {_CONVERT}",
        ) from error
    av.logging.set_level(None)
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise cannot_read(name, error, expected="an audio file") from error
    with stream:
        with _own_errors(name):
            opened = av.open(stream, mode="r", format=form, options=_OPTIONS, metadata_errors="replace")
        with opened:
            with _own_errors(name):
                _check_audio(opened, title, name)
                container = _Container(opened, name, _stated_seconds(opened, form, head) - _ROUNDED)
            yield container


# Nothing but the open file; no file that another refers to.
_OPTIONS = {"protocol_whitelist": "", "enable_drefs": "0", "use_absolute_path": "0"}
