"""TODO."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def greedy(logits: Array, frames: Array, *, blank_id: int) -> Array:
    """`collapse` of the best path of each clip, on the device.

    Args: logits [B, T, V], frames [B] int, the valid ones. Returns: [B, T] int32, in each row the clip's
        labels in order, among entries of -1 where a frame adds none.
    """
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    before = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    kept = (ids != before) & (ids != blank_id) & (jnp.arange(ids.shape[1]) < frames[:, None])
    return jnp.where(kept, ids, -1)


def collapse(ids: np.ndarray, blank_id: int) -> np.ndarray:
    """The labels that a path of frame labels [T] stands for: repeats merged, then blanks dropped."""
    ids = np.asarray(ids)
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return ids[first & (ids != blank_id)]
