"""Recordings that libsndfile reads: RIFF, NIST SPHERE, FLAC, MP3, OGG, AIFF, AU, CAF and more.

libsndfile reads the first of several joined streams, believes an MP3's estimated length, and a WAV header
that says 0 because its program wrote into a pipe. Here such files are read to their end.
"""

from __future__ import annotations

import io
import mmap
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError, cannot_read

_UNKNOWN_LENGTH = 2**63 - 1  # libsndfile's SF_COUNT_MAX: a FLAC stream whose header leaves the length open

# libsndfile shortens a truncated RIFF, AIFF or AU file's length in silence, and notes it only in its log.
_SHORTENED = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_STREAMED = 0x7FFF_0000  # from here up, the size is the placeholder of a program that wrote into a pipe
_NIST_SAMPLE_COUNT = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)
# libsndfile finds exactly the frame that it seeks in these; not in MP3, Vorbis and the codecs of blocks.
_EXACT = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW")

_MP3_HEADER = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef]", re.DOTALL)
_MP3_INFO = re.compile(
    rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb][\x10-\xef].(?:.{9}|.{17}|.{32})(?:Xing|Info)\0\0\0[\0-\x0f]", re.DOTALL
)
_OGG_BEGINNING = re.compile(rb"OggS\0\x02\0{8}")
_FLAC_BEGINNING = re.compile(rb"fLaC[\0\x80]\0\0\x22")


class SoundFiles:
    """One recording of one or more of libsndfile's files, one after the other."""

    def __init__(self, files: list[soundfile.SoundFile], promised: int | None):
        first = files[0]
        self.rate, self.channels, self.promised = int(first.samplerate), int(first.channels), promised
        whole = first.subtype == "PCM_16" and self.channels == 1 and self.rate == SAMPLE_RATE
        self.dtype = "int16" if whole else "float32"
        self._exact = len(files) == 1 and first.seekable()
        self.open_ended = any(file.frames == _UNKNOWN_LENGTH for file in files)
        self._files = list(files)
        self._at = 0  # the frame of the first of them that is read next

    def read(self, count: int) -> np.ndarray:
        while self._files:
            file = self._files[0]
            block = file.read(min(count, max(0, file.frames - self._at)), self.dtype, always_2d=True)
            if len(block):
                self._at += len(block)
                return block
            self._files.pop(0)
            self._at = 0
        return np.zeros((0, self.channels), self.dtype)

    def skip_to(self, frame: int) -> bool:
        if not (self._exact and self._files):
            return False
        self._at = self._files[0].seek(frame)
        return True


class _SoundFile(soundfile.SoundFile):
    """Seeks only where this is exact. soundfile would seek after each read, to where the file is already."""

    def seekable(self) -> bool:
        return self.subtype in _EXACT and bool(super().seekable())


class _Bytes(io.BytesIO):
    """Seeks to before the start go to the start: libsndfile asks for that in damaged files."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except ValueError:
            return super().seek(0)


@contextmanager
def open_sound(source: Path | bytes, name: str) -> Iterator[SoundFiles]:
    """A file, or a whole file's bytes, opened. Errors inside the `with` become UserErrors too."""
    whole: mmap.mmap | bytes
    handles: list[Any]
    try:
        with ExitStack() as stack:
            if isinstance(source, bytes):
                stream, whole = None, source
            else:
                # FileIO is unbuffered: libsndfile then finds the descriptor where we left it.
                stream = stack.enter_context(io.FileIO(source))
                whole = _mapped(stream, stack)
            if not len(whole):
                raise UserError(
                    "the file is empty", where=name, expected="audio", do="copy or download it again"
                )
            pieces, estimated = _pieces(whole)
            if pieces is None and stream is not None:
                # By descriptor: by name, soundfile would take a .raw extension for headerless samples.
                handles = [stream.fileno()]
            else:
                handles = [_Bytes(piece) for piece in pieces or [bytes(whole)]]
            files = [stack.enter_context(_SoundFile(handle, closefd=False)) for handle in handles]
            _check_alike(files, name)
            if estimated or any(file.frames == _UNKNOWN_LENGTH for file in files):
                promised = None
            else:
                promised = sum(_promised_frames(file, whole[:1024]) for file in files)
            yield SoundFiles(files, promised)
    except OSError as error:
        raise cannot_read(name, error, expected="an audio file") from error
    except soundfile.SoundFileError as error:
        raise UserError(
            f"libsndfile cannot decode it ({getattr(error, 'error_string', error)})",
            where=name,
            expected="a whole WAV, NIST SPHERE, FLAC, MP3 or OGG file",
            do="copy it again, or convert it to WAV",
        ) from error


def _mapped(stream: io.FileIO, stack: ExitStack) -> mmap.mmap | bytes:
    """The file's bytes, which are read only where they are looked at."""
    try:
        return stack.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError:  # an empty file
        return b""


def _check_alike(files: list[soundfile.SoundFile], name: str) -> None:
    kinds = [(file.samplerate, file.channels) for file in files]
    if len(set(kinds)) > 1:
        raise UserError(
            "joined streams of different kinds",
            where=name,
            found=[f"{rate} Hz with {channels} channels" for rate, channels in kinds],
            expected="one sample rate and one number of channels",
            do="cut the file at the joints, or convert it with `ffmpeg -i IN -ac 1 -ar 16000 OUT.wav`",
        )


def _promised_frames(file: soundfile.SoundFile, head: bytes) -> int:
    """The number of frames that the header states; libsndfile's own may be the number that is there."""
    if head.startswith(b"NIST_1A") and (count := _NIST_SAMPLE_COUNT.search(head)):
        return int(count[1])
    if shortened := _SHORTENED.search(file.extra_info):
        stated, present = int(shortened[1]), int(shortened[2])
        # Both in bytes, and the compression is constant: scale the frames that libsndfile found.
        if present > 0 and stated < _STREAMED:
            return int(file.frames * stated // present)
    return int(file.frames)


# --- What libsndfile would not read to its end --------------------------------------------------------------


def _pieces(whole: mmap.mmap | bytes) -> tuple[list[bytes] | None, bool]:
    """What libsndfile is to read in place of the file, None: itself; and whether its length is a guess.

    Joined OGG, FLAC and MP3 streams become a piece each. An MP3 gets the number of its frames where its
    header does not have it. A WAV whose data has the size 0 of a pipe gets the size that is there.
    """
    head = bytes(whole[:12])
    if head[:4] == b"OggS":
        return _cut(whole, _OGG_BEGINNING), False
    if head[:4] == b"fLaC":
        return _cut(whole, _FLAC_BEGINNING), False
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _with_size(whole), False
    start = _after_id3(whole, 0)
    if _MP3_HEADER.match(whole, start):
        return _mp3_pieces(whole, start)
    return None, False


def _cut(whole: mmap.mmap | bytes, beginning: re.Pattern[bytes]) -> list[bytes] | None:
    starts = [match.start() for match in beginning.finditer(whole)]
    if len(starts) < 2:
        return None
    return [bytes(whole[a:b]) for a, b in zip(starts, [*starts[1:], len(whole)], strict=True)]


def _with_size(whole: mmap.mmap | bytes) -> list[bytes] | None:
    """The WAV file with its data's size, where that is 0 and what follows is no further chunk."""
    at = 12
    while at + 8 <= len(whole) and bytes(whole[at : at + 4]) != b"data":
        at += 8 + int.from_bytes(whole[at + 4 : at + 8], "little") + 1 & ~1
    rest = len(whole) - at - 8
    if rest < 2 or any(whole[at + 4 : at + 8]) or _is_chunk(bytes(whole[at + 8 : at + 16]), rest):
        return None
    patched = bytearray(whole)
    patched[4:8] = patched[at + 4 : at + 8] = b"\xff" * 4  # libsndfile then takes what is there
    return [bytes(patched)]


def _is_chunk(head: bytes, rest: int) -> bool:
    return head[:4].isascii() and head[:4].isalpha() and int.from_bytes(head[4:], "little") + 8 <= rest


def _after_id3(data: mmap.mmap | bytes, at: int) -> int:
    head = bytes(data[at : at + 10])
    if head[:3] != b"ID3" or len(head) < 10:
        return at
    size = 0
    for byte in head[6:]:
        size = size << 7 | byte & 0x7F
    return at + 10 + size


def _mp3_pieces(whole: mmap.mmap | bytes, start: int) -> tuple[list[bytes] | None, bool]:
    found = [match.start() for match in _MP3_INFO.finditer(whole)]
    starts = [start, *(at for at in found if at > start)]
    pieces, estimated = [], False
    for begin, end in zip(starts, [*starts[1:], len(whole)], strict=True):
        piece = bytes(whole[begin:end])
        frames = _mp3_frames(piece)
        info = _MP3_INFO.match(piece)
        stated = int.from_bytes(piece[info.end() : info.end() + 4], "big") if info else 0
        if frames > stated + 2:  # no number, or that of the first of several joined streams
            piece = _mp3_info(piece, frames) + (piece[_mp3_size(piece, 0) :] if info else piece)
            estimated = True
        # libsndfile knows every MP3 by such a tag, and not every one without.
        pieces.append(b"ID3\3\0\0\0\0\0\x0a" + bytes(10) + piece)
    return pieces, estimated


_KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5, layer III
}  # ISO/IEC 11172-3, 2.4.2.3; ISO/IEC 13818-3, 2.4.2.3


def _mp3_size(data: bytes, at: int) -> int:
    """Bytes of the layer III frame whose header is there; 0 where there is none."""
    if not _MP3_HEADER.match(data, at) or len(data) < at + 4 or data[at + 2] & 0x0C == 0x0C:
        return 0
    version = data[at + 1] >> 3 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    rate = (44_100, 48_000, 32_000)[data[at + 2] >> 2 & 3] // {3: 1, 2: 2, 0: 4}[version]
    bits = 1000 * _KILOBITS[version == 3][data[at + 2] >> 4]
    return (144 if version == 3 else 72) * bits // rate + (data[at + 2] >> 1 & 1)


def _mp3_frames(data: bytes) -> int:
    """The number of frames, wherever bytes between them are no frames."""
    at, count = 0, 0
    while at < len(data):
        if size := _mp3_size(data, at):
            at, count = at + size, count + 1
        else:
            following = _MP3_HEADER.search(
                data, _after_id3(data, at) if data[at : at + 3] == b"ID3" else at + 1
            )
            at = following.start() if following else len(data)
    return count


def _mp3_info(piece: bytes, frames: int) -> bytes:
    """A frame as encoders put before the others, with their number."""
    one = piece[3] >> 6 == 3  # one channel
    mpeg1 = piece[1] >> 3 & 3 == 3
    side = (17 if one else 32) if mpeg1 else (9 if one else 17)
    # At a bit rate whose frame has the room; without the two bytes of a checksum.
    header = bytes([0xFF, piece[1] | 1, piece[2] & 0x0C | 0x80, piece[3]])
    content = header + bytes(side) + b"Info" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return content.ljust(_mp3_size(header, 0), b"\0")
