"""Batches that can be gone through again, and results that are fetched while the device works on."""

import numpy as np
import pytest

from flax_wavlm.data.batches import FILLER
from flax_wavlm.data.clips import Clip
from flax_wavlm.recognition.forward import ClipBatches, prefetch


def clips(count: int) -> list[Clip]:
    random = np.random.default_rng(0)
    return [
        Clip(str(i), random.integers(-99, 99, 800 + 321 * i, np.int16), np.zeros(1, np.int32), "", "")
        for i in range(count)
    ]


@pytest.mark.parametrize("frame_count", [None, lambda samples: samples // 320])
def test_every_clip_once_in_every_round(frame_count) -> None:
    batches = ClipBatches(clips(11), 4, 2, do_normalize=True, frame_count=frame_count)
    for _ in range(2):
        found = [int(clip) for batch in batches for clip in batch["clip"] if clip != FILLER]
        assert found == list(range(11))[::-1]  # the longest first
    lengths = {batch["samples"].shape[1] for batch in batches}
    assert lengths <= set(batches.buckets)
    assert len(batches.buckets) <= 2
    if frame_count is not None:
        assert all(frame_count(samples) % 2 == 0 for samples in lengths)


@pytest.mark.parametrize("count", [0, 1, 2, 9])
def test_prefetch_keeps_the_order_and_runs_ahead(count: int) -> None:
    made: list[int] = []

    def items():
        for i in range(count):
            made.append(i)
            yield i

    for number, item in enumerate(prefetch(items(), 2)):
        assert item == number
        assert len(made) == min(count, number + 3)
    assert len(made) == count
