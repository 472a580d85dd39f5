"""How loud a recording is from moment to moment, and what of that is a pause.

H  steps
"""

from __future__ import annotations

import numpy as np

from flax_wavlm.data.preprocessor import full_scale

QUIETEST = -70.0  # dB: digital silence counts as this
PERCENTILES = (5, 95)  # of levels, which are taken for those of pauses and of speech
_CONTRAST = 12.0  # dB between the two: with less, nothing is taken for a pause
_THRESHOLD = 0.3  # of the way from the level of pauses to that of speech


def levels(samples: np.ndarray, step: int) -> np.ndarray:
    """The level of each whole step of samples [N]: float32 dB [H], full scale 0."""
    steps = full_scale(samples[: len(samples) // step * step]).reshape(-1, step)
    power = np.square(steps - steps.mean(axis=1, keepdims=True)).mean(axis=1)
    return np.maximum(10 * np.log10(power + 1e-12), QUIETEST).astype(np.float32)


def threshold(pauses: float, speech: float) -> float:
    """dB above which a step is speech. Where the two levels are near to each other, everything is speech."""
    return float(pauses + _THRESHOLD * (speech - pauses)) if speech - pauses >= _CONTRAST else QUIETEST
