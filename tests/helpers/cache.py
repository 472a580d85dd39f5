"""Writers of a cache for processes of their own, which must be able to import them."""

from pathlib import Path

import ml_dtypes
import numpy as np

from flax_wavlm.data.cache import cached

ARRAYS = [
    np.arange(-5, 100, dtype=np.int16),
    None,
    np.linspace(-1, 1, 77, dtype=np.float32),
    np.arange(12, dtype=np.float32).reshape(3, 4).astype(ml_dtypes.bfloat16),
    np.zeros((0, 4), np.float32),
]


def write_for_ever(folder: Path) -> None:
    def arrays():
        while True:
            yield np.zeros(1000, np.int16)

    cached(folder, "name", ["x", 1], arrays)


def write_at_once(folder: Path, start, results) -> None:
    def arrays():
        start.wait()  # all writers are in the middle
        yield from ARRAYS

    found = cached(folder, "name", ["x", 1], arrays)
    results.put([None if array is None else array.astype(np.float32).sum() for array in found])
