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


def to_mono(samples: np.ndarray, rate: int, channel: str, name: str) -> Mono:
    """One channel of float samples [N, C].

    "auto" is the mean of the channels, with two exceptions. A channel that is 40 dB below the loudest is
    empty and left out. Where channels cancel each other out in the mean, as a channel and its inverse do,
    the loudest is taken. Both are judged by the energy between about 300 and 2,000 Hz, so that hum, a
    constant offset and hiss do not count.

    Raises UserError where the recording does not have the channel.
    """
    count = samples.shape[1]
    if channel not in ("auto", "mean"):
        return Mono(samples[:, _number(channel, count, name)], "")
    if channel == "mean" or count == 1:
        return Mono(samples.mean(axis=1), "")
    band = _speech_band(samples, rate)
    energy = np.square(band).sum(axis=0, dtype=np.float64)
    loudest = int((energy >= 0.9 * energy.max()).argmax())  # rounding alone does not choose
    used = np.flatnonzero(energy > EMPTY * energy[loudest])
    if not len(used):  # silence
        return Mono(samples.mean(axis=1), "")
    unrelated = energy[used].sum() / len(used) ** 2
    if np.square(band[:, used].mean(axis=1)).sum(dtype=np.float64) < CANCELLED * unrelated:
        note = f"channels that cancel each other out: channel {loudest} of {count} is taken, the loudest"
        return Mono(samples[:, loudest], f"{note}; data.channel chooses another")
    note = ""
    if len(used) < count:
        empty = [number for number in range(count) if number not in used]
        note = f"empty channels: of {count}, numbered from 0, {', '.join(map(str, empty[:10]))} is left out"
    elif any(_differ(band[:, loudest], band[:, other]) for other in used if other != loudest):
        note = f"channels that differ: the mean of {count} is taken, as for one place with one speaker"
        note += "; where each has a speaker of its own, data.channel chooses one"
    return Mono(samples[:, used].mean(axis=1), note)


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


def _speech_band(samples: np.ndarray, rate: int) -> np.ndarray:
    """First differences, at about 4 kHz, of means over neighbours: a coarse band-pass. [N, C] -> [n, C]."""
    step = max(1, rate // _BAND_RATE)
    whole = len(samples) // step * step
    means = samples[:whole].reshape(-1, step, samples.shape[1]).mean(axis=1)
    return np.diff(means, axis=0, prepend=means[:1]) if len(means) > 1 else samples


def _differ(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two channels [n] are not the same sound, with at most 10 ms between them."""
    scale = float(np.sqrt(np.square(one).sum() * np.square(other).sum()))
    lags = sorted(range(-_LAG, _LAG + 1), key=abs)  # 0 first, where most stereo recordings agree
    return not any(abs(_product(one, other, lag)) > UNRELATED * scale for lag in lags)


def _product(one: np.ndarray, other: np.ndarray, lag: int) -> float:
    if lag < 0:
        one, other, lag = other, one, -lag
    return float(one[lag:] @ other[: len(one) - lag]) if lag < len(one) else 0.0
