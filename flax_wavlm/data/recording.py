"""An opened recording, and parts of it read in the order of time.

N  frames      C  channels
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

BLOCK = 2**20  # samples that are read at a time: a damaged header may promise terabytes
MOST_SAMPLES = 24 * 3600 * 16_000  # that are decoded of one recording at once, over all its channels


class Recording(Protocol):
    """What a decoder gives. Errors in its methods are UserErrors."""

    rate: int  # Hz
    channels: int
    dtype: str  # "int16", or "float32" with a full scale of 1.0
    promised: int | None  # frames that the header states; None where it states none, or only an estimate

    def read(self, count: int) -> np.ndarray:
        """The next frames [N, C], at most `count`; none at the end."""
        ...

    def skip_to(self, frame: int) -> bool:
        """Goes to a frame that exists; False where only reading on finds exactly this frame."""
        ...


class Window:
    """Reads ranges of frames whose beginnings never go back; what ranges share is decoded once."""

    def __init__(self, recording: Recording):
        self._recording = recording
        self._first = 0  # the frame that `_kept` begins with
        self._kept = np.zeros((0, recording.channels), recording.dtype)

    def read(self, first: int, count: int) -> np.ndarray:
        """Frames `first` to `first + count` [N, C]: fewer where the recording ends before."""
        blocks = [self._kept[max(0, first - self._first) :]]
        at = self._first + len(self._kept)
        if first > at:
            if not self._skip(at, first):
                return blocks[0][:0]
            at = first
        while at < first + count:
            block = self._recording.read(min(first + count - at, max(1, BLOCK // self._recording.channels)))
            if not len(block):
                break
            at += len(block)
            blocks.append(block)
        found = np.concatenate(blocks) if len(blocks) > 1 else blocks[0]
        self._first, self._kept = first, found
        return found[:count]

    def _skip(self, at: int, first: int) -> bool:
        """Goes from frame `at` on to frame `first`; False where the recording has ended before."""
        if self._recording.promised is not None:
            if first > self._recording.promised:
                return False
            if self._recording.skip_to(first):
                return True
        while at < first:
            skipped = len(self._recording.read(min(first - at, BLOCK)))
            if not skipped:
                return False
            at += skipped
        return True
