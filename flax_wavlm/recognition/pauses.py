"""Where a recording is quiet between two words, and can be cut.

H  steps of 10 ms
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flax_wavlm.data.sampling import SAMPLE_RATE
from flax_wavlm.recognition.levels import PERCENTILES, levels, threshold

STEP = SAMPLE_RATE // 100  # samples; a pause is measured in these
PAUSE = 0.15  # seconds: shorter silence may be the closure before a plosive

_BLOCK = 60 * SAMPLE_RATE  # samples that are read at a time


class Gap(NamedTuple):
    """What is between two words, in seconds. Without a pause it begins where it ends."""

    begin: float
    end: float

    @property
    def pause(self) -> float:
        return self.end - self.begin


def all_levels(read: Callable[[int], np.ndarray]) -> np.ndarray:
    """The level of each whole step of a recording: dB [H], full scale 0.

    `read` gives the next samples of it, as `streams.Stream.read` does.
    """
    found = [np.zeros(0, np.float32)]
    while len(samples := read(_BLOCK)):
        found.append(levels(samples, STEP))
    return np.concatenate(found)


def is_quiet(level: np.ndarray) -> np.ndarray:
    """Whether each step [H] of a recording is no speech, by the levels that most of it has."""
    if not len(level):
        return np.zeros(0, bool)
    return level <= threshold(*np.percentile(level, PERCENTILES))


class Spoken(NamedTuple):
    """Something that was said. The boundaries that CTC gives may be some tenths of a second away from it."""

    begin: float  # seconds
    end: float
    surely: tuple[float, float]  # from when and until when it is certainly said: no pause is in between


def gap_between(quiet: np.ndarray, level: np.ndarray, first: Spoken, then: Spoken) -> Gap:
    """The longest pause between two neighbours; without one, the quietest step between them.

    `quiet` [H] and `level` [H] are of the whole recording.
    """
    low, high = _steps(first.surely[1]), _steps(then.surely[0])
    inside = np.concatenate([[False], quiet[low:high], [False]])
    begins, ends = np.flatnonzero(inside[1:] != inside[:-1]).reshape(-1, 2).T
    if len(begins) and (ends - begins).max() * STEP >= PAUSE * SAMPLE_RATE:
        longest = int((ends - begins).argmax())
        return Gap(*((low + np.array([begins[longest], ends[longest]])) * STEP / SAMPLE_RATE).tolist())
    low, high = sorted([_steps(first.end), _steps(then.begin)])
    near = level[low : high + 1]
    at = (low + int(near.argmin()) + 0.5) * STEP / SAMPLE_RATE if len(near) else (first.end + then.begin) / 2
    return Gap(at, at)


def _steps(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / STEP)
