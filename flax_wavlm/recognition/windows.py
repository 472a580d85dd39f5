"""Cuts a recording of any length into windows that a model hears one at a time.

Models break beyond the lengths that they were trained on, so a window is about as long as training clips
were. It ends at a pause where there is one. Elsewhere neighbours overlap, and what the model says of them is
joined in the middle of the overlap, frame by frame: each frame is one window's, none is lost or doubled.

    N  samples of a window at 16 kHz      T  frames of a window
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.errors import UserError
from flax_wavlm.models.config import WavLMConfig
from flax_wavlm.porting.extras import TrainingSeconds
from flax_wavlm.recognition.levels import PERCENTILES, QUIETEST, levels, threshold

UNKNOWN = TrainingSeconds(usual=20.0, longest=25.0)  # where nothing is known of a model's training clips

OVERLAP = 0.5  # of a window that ends at no pause: the share that the next one hears too
LOOK_AHEAD = 30.0  # seconds by which the level of speech and of what is between it are judged
PAUSE = 0.2  # seconds: a window ends at such a pause where it can
SHORT_PAUSE = 0.1  # seconds: it may be the closure before a plosive, so a window ends there only in need
LONG_PAUSE = 1.0  # seconds: no window goes on behind it
MARGIN = 0.12  # seconds of a pause that its neighbours keep; the demo's model was tried with 0.08 to 0.14
STRETCH = 60.0  # seconds: without a pause, speech is decoded in stretches of about this length
REMEMBERED = 600.0  # seconds that tell the levels too, so that a long silence is not taken for speech

_RANGE = 30.0  # dB below the level of a window's own speech, where it begins and ends at the latest


class Window(NamedTuple):
    """A part of a recording that the model hears at once.

    Attributes:
        samples: int16 or float32 [N].
        first: the recording's frame that is the window's first.
        begin, end: the window's own frames that count; those around them are context.
        closes: what was said ends here: the next window's frames are another stretch of speech.
    """

    samples: np.ndarray
    first: int
    begin: int
    end: int
    closes: bool


@dataclass(frozen=True)
class Windowing:
    """How recordings are cut.

    Attributes:
        hop: samples from one frame to the next.
        receptive_field: samples that a frame is made of.
        usual: frames of a window.
        longest: frames that a window may have to end at a pause, or at the recording's end.
        at_pauses: False: every window has `usual` frames, wherever that is.
    """

    hop: int
    receptive_field: int
    usual: int
    longest: int
    at_pauses: bool = True

    @classmethod
    def of(cls, config: WavLMConfig, seconds: TrainingSeconds, *, at_pauses: bool = True) -> Windowing:
        """For a model, and windows of these seconds."""
        hop = int(np.prod(config.conv_stride))
        usual, longest = (config.frame_count(round(s * SAMPLE_RATE)) for s in seconds)
        if usual < 2:
            raise UserError(
                field="window",
                found=seconds.usual,
                expected=f"at least {(config.min_samples + hop) / SAMPLE_RATE} s, 2 frames of the model",
            )
        return cls(hop, config.min_samples, usual, longest, at_pauses)

    def samples(self, frames: int) -> int:
        """What so many frames are made of."""
        return (frames - 1) * self.hop + self.receptive_field

    def frames(self, samples: int) -> int:
        """How many frames so many samples give."""
        return max(0, (samples - self.receptive_field) // self.hop + 1)


def windows(read: Callable[[int], np.ndarray], windowing: Windowing) -> Iterator[Window]:
    """The windows of a recording, in the order of time.

    A recording that is not longer than the longest window is one, whole. Of a pause, `MARGIN` seconds on both
    sides stay; the rest is in no window, as models write words into silence. A pause has the energy of the
    quietest frames around, or little more. So a quiet speaker after a loud one is no pause.

    Args:
        read: gives the next samples of the recording, as `streams.Stream.read` does.
        windowing: see there.
    """
    part = _Part(read, windowing)
    frames = part.frames()
    if part.ended and frames <= windowing.longest:
        if frames:
            yield part.window(frames, 0, frames, closes=True)
        return
    overlap = min(int(OVERLAP * windowing.usual), windowing.usual - 1)
    begin = 0  # the first of the next window's frames that counts
    stretch = 0  # frames since the last pause
    while part.frames() > begin:
        if begin == 0 and (silence := part.silence()):
            part.drop(silence)
            continue
        if end := part.next_pause(begin):
            end_of_speech = part.end_of_speech(begin, end)
            yield part.window(end_of_speech, begin, end_of_speech, closes=True)
            part.drop(end)
            begin = stretch = 0
        else:
            end = windowing.usual - overlap // 2
            stretch += end - begin
            closes = stretch > STRETCH * SAMPLE_RATE / windowing.hop
            yield part.window(windowing.usual, begin, end, closes=closes)
            part.drop(windowing.usual - overlap)
            begin, stretch = overlap - overlap // 2, 0 if closes else stretch


class _Part:
    """The part of a recording that is looked at: its frames from `first` on."""

    def __init__(self, read: Callable[[int], np.ndarray], windowing: Windowing):
        self._read, self._windowing = read, windowing
        self._ahead = windowing.samples(max(2 * windowing.longest, self._frames_in(LOOK_AHEAD)))
        self.first = 0
        self.ended = False
        self._samples = read(0)
        self._energies = np.zeros(0, np.float32)  # dB, of each whole hop
        self._past = np.zeros(0, np.float32)  # dB, of the last hops before `first`
        self._fill()

    def _frames_in(self, seconds: float) -> int:
        return round(seconds * SAMPLE_RATE / self._windowing.hop)

    def _fill(self) -> None:
        missing = self._ahead - len(self._samples)
        if missing > 0 and not self.ended:
            new = self._read(max(missing, self._ahead // 2))
            self.ended = len(new) < missing
            self._samples = np.concatenate([self._samples, new])
        hop = self._windowing.hop
        known = len(self._energies)
        new_levels = levels(self._samples[known * hop :], hop)
        self._energies = np.concatenate([self._energies, new_levels])

    def frames(self) -> int:
        """The model's frames that the part has."""
        return self._windowing.frames(len(self._samples))

    def window(self, size: int, begin: int, end: int, *, closes: bool) -> Window:
        """The first `size` frames, of which those from `begin` to `end` count."""
        whole = self.ended and size == self.frames()  # then with the samples that make no frame, as a clip
        samples = self._samples if whole else self._samples[: self._windowing.samples(size)]
        return Window(samples.copy(), self.first, begin, end, closes)

    def drop(self, frames: int) -> None:
        """Goes on by so many frames."""
        past = np.concatenate([self._past, self._energies[:frames]])
        self._past = past[max(0, len(past) - self._frames_in(REMEMBERED)) :]
        self.first += frames
        self._samples = self._samples[frames * self._windowing.hop :]
        self._energies = self._energies[frames:]
        self._fill()

    def silence(self) -> int:
        """The frames that begin the part and are to be left out, as they are silence beyond the margin."""
        if not self._windowing.at_pauses:
            return 0
        margin = self._frames_in(MARGIN)
        loud = np.flatnonzero(self._energies > self._threshold())
        if not len(loud):
            return len(self._energies) if self.ended else max(1, len(self._energies) - margin)
        first = int(loud[0])
        own = self._energies[first : first + self._windowing.usual]
        speech = first + int(np.flatnonzero(own > self._threshold(own))[0])
        return max(0, speech - margin)

    def end_of_speech(self, begin: int, end: int) -> int:
        """The frame at which a window that a pause ends at `end` is to end, a margin behind its speech."""
        if not self._windowing.at_pauses:
            return end
        own = self._energies[:end]
        loud = np.flatnonzero(own > self._threshold(own))
        return min(end, max(begin, int(loud[-1]) if len(loud) else end) + 1 + self._frames_in(MARGIN))

    def next_pause(self, begin: int) -> int:
        """The frame at which a window that counts from `begin` ends, at a pause or at the recording's end.

        It is at the last pause within the usual length; without one, the first within the longest; without
        that too, the longest of short pauses. 0: there is none. No window goes on behind a long pause.
        """
        windowing = self._windowing
        if not windowing.at_pauses:
            return self.frames() if self.ended and self.frames() <= windowing.usual else 0
        margin, short_ones, ends = self._frames_in(MARGIN), {}, []
        for first, last in self._pauses(windowing.longest):
            end = first + min(margin, (last - first) // 2)
            if not begin < end <= windowing.longest:
                continue
            if last - first < self._frames_in(PAUSE):
                short_ones[end] = last - first
                continue
            ends.append(end)
            if last - first >= self._frames_in(LONG_PAUSE):
                break
        else:
            if self.ended and self.frames() <= windowing.longest:
                ends.append(self.frames())
        if ends:
            return max((end for end in ends if end <= windowing.usual), default=min(ends))
        return max(short_ones, key=lambda end: short_ones[end], default=0)

    def _pauses(self, until: int) -> list[tuple[int, int]]:
        """The first frame of each pause that begins before a frame, and the first one after it."""
        quiet = np.concatenate([[False], self._energies <= self._threshold(), [False]])
        bounds = np.flatnonzero(quiet[1:] != quiet[:-1]).reshape(-1, 2)
        long_enough = (bounds[:, 1] - bounds[:, 0] >= self._frames_in(SHORT_PAUSE)) & (bounds[:, 0] < until)
        return [(int(first), int(last)) for first, last in bounds[long_enough]]

    def _threshold(self, own: np.ndarray | None = None) -> float:
        """dB above which a frame is speech.

        The levels of pauses and of speech are percentiles over what is remembered and what is ahead; that of
        speech is that of `own` frames where these are given. Where the two are near to each other, everything
        is speech.
        """
        known = np.concatenate([self._past, self._energies])
        pauses, speech = np.percentile(known, PERCENTILES)
        if own is None:
            return threshold(pauses, speech)
        speech = np.percentile(own, PERCENTILES[1])
        found = threshold(pauses, speech)
        return found if found == QUIETEST else max(found, float(speech - _RANGE))
