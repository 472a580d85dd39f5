"""Clips made of noise, and what their lengths become in the model."""

import io

import numpy as np
import soundfile
from hypothesis import strategies as st

from flax_wavlm.data.clips import Clip

SECOND = 16_000


def frame_count(samples: int) -> int:
    """WavLM's conv stem: kernels 10, 3, 3, 3, 3, 2, 2; strides 5, 2, 2, 2, 2, 2, 2."""
    for kernel, stride in [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]:
        samples = (samples - kernel) // stride + 1
    return samples


def make_clips(lengths, seed=0) -> list[Clip]:
    random = np.random.default_rng(seed)
    return [
        Clip(
            id=f"clip{i}",
            samples=random.integers(-9000, 9000, length, dtype=np.int16),
            labels=random.integers(1, 28, 1 + i % 11, dtype=np.int32),
            text="",
            speaker="",
        )
        for i, length in enumerate(lengths)
    ]


def wav(samples: np.ndarray, rate: int = SECOND) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype="PCM_16", format="WAV")
    return file.getvalue()


def tone(samples: int) -> np.ndarray:
    return np.round(8000 * np.sin(np.arange(samples) * 0.05)).astype(np.int16)


lengths_strategy = st.lists(st.integers(400, 9000), min_size=1, max_size=60)
sets = st.fixed_dictionaries(
    {"lengths": lengths_strategy, "batch_size": st.integers(1, 9), "n_buckets": st.integers(1, 6)}
)
