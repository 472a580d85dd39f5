"""TODO."""

from __future__ import annotations

import jax
import numpy as np

Array = jax.Array

# --- With the whole bias ------------------------------------------------------------------------------------


def toeplitz(table: Array) -> Array:
    """[H, 2T - 1] by distance -> [H, T, T] for every query t and key s."""
    time = (table.shape[1] + 1) // 2
    # Row t of a Toeplitz matrix is a window of the table: distance s - t stands at T - 1 + s - t.
    index = np.arange(time)[None, :] - np.arange(time)[:, None] + time - 1
    return table[:, index]
