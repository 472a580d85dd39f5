"""Recordings with several channels to one: their mean, or what is better where the mean is not the speech.

N  frames of the recording      C  channels
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flax_wavlm.data.sampling import CHANNELS
from flax_wavlm.errors import UserError

CANCELLED = 0.1  # the mean's energy, as a share of what the mean of unrelated channels would have
EMPTY = 1e-4  # -40 dB: a channel's energy, as a share of the loudest one's
UNRELATED = 0.4  # the largest correlation of two channels that differ
_BAND_RATE = 4_000  # Hz; its first differences have the energy of about 300 to 2,000 Hz
_LAG = _BAND_RATE // 100  # 10 ms: sound reaches microphones 3 m apart at times that differ by this


class Mono(NamedTuple):
    """One channel, and what was decided for the user, "kind: details"; "" where nothing was."""

    samples: np.ndarray  # float32 [N]
    note: str


class Mix(NamedTuple):
    """How channels become one, and what was decided for the user."""

    weights: np.ndarray  # float32 [C]
    note: str

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The one channel [N] of float samples [N, C]."""
        used = np.flatnonzero(self.weights)
        return samples[:, used[0]] if len(used) == 1 else samples[:, used].mean(axis=1)


def to_mono(samples: np.ndarray, rate: int, channel: str, name: str) -> Mono:
    """One channel of float samples [N, C].

    "auto" is the mean of the channels, with two exceptions. A channel that is 40 dB below the loudest is
    empty and left out. Where channels cancel each other out in the mean, as a channel and its inverse do,
    the loudest is taken. Both are judged by the energy between about 300 and 2,000 Hz, so that hum, a
    constant offset and hiss do not count.

    Raises UserError where the recording does not have the channel.
    """
    count = samples.shape[1]
    mix = chosen_mix(channel, count, name)
    if mix is None:
        seen = Statistics(count, rate)
        seen.add(samples)
        mix = seen.mix()
    return Mono(mix(samples), mix.note)


def chosen_mix(channel: str, count: int, name: str) -> Mix | None:
    """The mix that a setting says by itself; None where it depends on the samples of `count` channels.

    Raises UserError where the recording does not have the channel.
    """
    if channel not in ("auto", "mean"):
        return Mix(np.eye(count, dtype=np.float32)[_number(channel, count, name)], "")
    return Mix(np.ones(count, np.float32), "") if channel == "mean" or count == 1 else None


class Statistics:
    """What "auto" looks at, gathered block by block: the products of all pairs of channels in the band.

    `products` [lags, C, C] are sums over time of one channel, delayed by the lag, times the other.
    """

    def __init__(self, count: int, rate: int):
        self._step = max(1, rate // _BAND_RATE)
        self._left = np.zeros((0, count), np.float32)  # samples that make no whole step yet
        self._before: np.ndarray | None = None  # the last mean
        self._band = np.zeros((0, count))  # the last `_LAG` differences
        self.products = np.zeros((_LAG + 1, count, count))

    def add(self, samples: np.ndarray) -> None:
        """The next frames [N, C] of the recording."""
        samples = np.concatenate([self._left, samples]) if len(self._left) else samples
        whole = len(samples) // self._step * self._step
        self._left = samples[whole:].copy()
        means = samples[:whole].reshape(-1, self._step, samples.shape[1]).mean(axis=1, dtype=np.float64)
        if not len(means):
            return
        before = means[:1] if self._before is None else self._before
        self._before = means[-1:]
        # First differences at about 4 kHz: a coarse band-pass.
        band = np.concatenate([self._band, np.diff(means, axis=0, prepend=before)])
        new = len(band) - len(self._band)
        for lag in range(min(_LAG, len(band) - 1) + 1):
            late = band[max(len(band) - new, lag) :]
            self.products[lag] += late.T @ band[len(band) - len(late) - lag : len(band) - lag]
        self._band = band[-_LAG:]

    def mix(self) -> Mix:
        """What "auto" decides by all that was added."""
        count = self.products.shape[1]
        energy = np.diag(self.products[0])
        loudest = int((energy >= 0.9 * energy.max()).argmax())  # rounding alone does not choose
        used = np.flatnonzero(energy > EMPTY * energy[loudest])
        if not len(used):  # silence
            return Mix(np.ones(count, np.float32), "")
        unrelated = energy[used].sum() / len(used) ** 2
        if self.products[0][np.ix_(used, used)].sum() / len(used) ** 2 < CANCELLED * unrelated:
            note = f"channels that cancel each other out: channel {loudest} of {count} is taken, the loudest"
            note = f"{note}; data.channel chooses another"
            return Mix(np.eye(count, dtype=np.float32)[loudest], note)
        note = ""
        if len(used) < count:
            empty = [number for number in range(count) if number not in used]
            note = (
                f"empty channels: of {count}, numbered from 0, {', '.join(map(str, empty[:10]))} is left out"
            )
        elif any(self._differ(loudest, int(other)) for other in used if other != loudest):
            note = f"channels that differ: the mean of {count} is taken, as for one place with one speaker"
            note += "; where each has a speaker of its own, data.channel chooses one"
        return Mix(np.isin(np.arange(count), used).astype(np.float32), note)

    def _differ(self, one: int, other: int) -> bool:
        """Whether two channels are not the same sound, with at most 10 ms between them."""
        scale = np.sqrt(self.products[0, one, one] * self.products[0, other, other])
        related = np.abs(self.products[:, [one, other], [other, one]]).max()
        return bool(related <= UNRELATED * scale)


def _number(channel: str, count: int, name: str) -> int:
    number = {"left": 0, "right": 1}.get(channel)
    if number is None:
        if not channel.isdecimal():
            expected = f"one of {', '.join(CHANNELS)}, or a number from 0"
            raise UserError(field="data.channel", found=channel, expected=expected)
        number = int(channel)
    if number >= count:
        there = f"{count} channels, 0 to {count - 1}" if count > 1 else "one channel, 0"
        raise UserError(
            f"has no channel {number}",
            where=name,
            expected=f"one of its {there}",
            do="set data.channel to one that it has, or to auto",
        )
    return number
