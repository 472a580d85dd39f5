"""Training clips at another speed and with noise, anew in every epoch.

All of it is a pure function of seed, epoch, step and clip, like the batches themselves. So a resumed run
hears what an unbroken one does.

    n  clips      N  samples of a clip      k  speeds
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import soxr

from flax_wavlm.data.clips import Clip
from flax_wavlm.data.preprocessor import full_scale
from flax_wavlm.data.sampling import SAMPLE_RATE

# Random words of Philox are promised to stay the same in every version of NumPy, and the numbers that its
# Generator makes of them are not (NEP 19). These counters set ours apart from the ones that order an epoch.
_OF_SPEEDS, _OF_NOISE = 2, 3


class Noise(NamedTuple):
    """Noise that is added to some clips.

    Attributes:
        recordings: of noise, int16 or float32, at 16 kHz; empty: white noise is made.
        share: of the clips that get noise, 0 to 1.
        snr: power of the speech over that of the noise in dB: the least and the most.
    """

    recordings: Sequence[np.ndarray]
    share: float
    snr: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The changes of training clips.

    Attributes:
        speeds: each clip gets one of these in an epoch, the same share of clips each (Ko et al. 2015, section
            2.2: pitch and tempo change together). Empty: clips keep theirs.
        possible: [n, k]: whether a clip's labels still fit its frames at a speed. One that does not keeps its
            own.
        noise: None: none is added.
    """

    speeds: tuple[float, ...] = ()
    possible: np.ndarray | None = None
    noise: Noise | None = None

    def speeds_in(self, clips: int, *, seed: int, epoch: int) -> np.ndarray:
        """The speed of each clip [n] in an epoch."""
        if not self.speeds:
            return np.ones(clips)
        random = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=[0, 0, 0, _OF_SPEEDS])
        chosen = np.empty(clips, np.int64)
        chosen[np.argsort(random.random_raw(clips), kind="stable")] = (np.arange(clips) + epoch) % len(
            self.speeds
        )
        speeds = np.array(self.speeds)[chosen]
        if self.possible is None:
            return speeds
        return np.where(self.possible[np.arange(clips), chosen], speeds, 1.0)

    def every_length(self, lengths: np.ndarray) -> np.ndarray:
        """Samples of each clip at each of its speeds, [n times k], or [n] as they are: what epochs have."""
        if not self.speeds:
            return lengths
        speeds = np.broadcast_to(np.array(self.speeds), (len(lengths), len(self.speeds)))
        if self.possible is not None:
            speeds = np.where(self.possible, speeds, 1.0)
        return at_speed(lengths[:, None], speeds).ravel()

    def __call__(self, clip: Clip, speed: float, *, seed: int, step: int, row: int) -> Clip:
        """The clip as it is in a row of a step's batch: float32."""
        samples = change_speed(full_scale(clip.samples), speed)
        if self.noise is not None:
            random = np.random.Philox(key=np.array([seed, step], np.uint64), counter=[0, row, 0, _OF_NOISE])
            samples = _with_noise(samples, self.noise, random)
        return dataclasses.replace(clip, samples=samples)


def at_speed(samples: np.ndarray | int, speed: np.ndarray | float) -> np.ndarray:
    """How many samples there are at a speed, at least one."""
    return np.maximum(1, np.round(np.asarray(samples) / speed)).astype(np.int64)


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Plays float32 samples [N] faster by a factor. Gives [at_speed(N, speed)]; pitch and tempo change."""
    if speed == 1:
        return samples
    changed = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="HQ")
    wanted = int(at_speed(len(samples), speed))
    return np.pad(changed[:wanted], (0, max(0, wanted - len(changed))))  # soxr may round otherwise


def _with_noise(samples: np.ndarray, noise: Noise, random: np.random.Philox) -> np.ndarray:
    """The samples [N] with noise, or, where the lot falls so, without it."""
    lot, level, which, where = _uniform(random, 4)
    if lot >= noise.share:
        return samples
    if noise.recordings:
        recording = noise.recordings[int(which * len(noise.recordings))]
        begin = int(where * len(recording))
        added = full_scale(np.take(recording, np.arange(begin, begin + len(samples)), mode="wrap"))
    else:
        added = _uniform(random, len(samples)).astype(np.float32) - np.float32(0.5)
    power = float(np.mean(np.square(added), dtype=np.float64))
    if power == 0:  # a silent part of a recording
        return samples
    least, most = noise.snr
    snr = least + level * (most - least)
    speech = float(np.mean(np.square(samples), dtype=np.float64))
    return samples + np.float32(np.sqrt(speech / power / 10 ** (snr / 10))) * added


def _uniform(random: np.random.Philox, count: int) -> np.ndarray:
    """So many numbers [count] from 0 up to 1."""
    return (random.random_raw(count) >> np.uint64(11)) * 2.0**-53
