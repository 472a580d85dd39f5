"""Greedy CTC decoding: the best label of every frame on the device, and what such a path says on the host.

A path goes to the host before it is collapsed. Collapsing costs next to nothing there, and one figure
(`metrics.wer_hf_padded`) needs the frames themselves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
NO_FRAME = -1  # what a path holds after its clip's last frame


def best_path(logits: Array, frame_lengths: Array) -> Array:
    """The most probable label of every frame.

    Args:
        logits: [B, T, V].
        frame_lengths: [B] int, the valid frames of each clip.
    Returns:
        [B, T] int32; `NO_FRAME` behind a clip's own frames.
    """
    ids = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.arange(ids.shape[1]) < frame_lengths[:, None], ids, NO_FRAME)


def path_of_clip(row: np.ndarray) -> np.ndarray:
    """The clip's own frames [T_i] of its row [T] of `best_path`."""
    return row[row != NO_FRAME]


def collapse(ids: np.ndarray, blank_id: int) -> np.ndarray:
    """The labels that a path of frame labels [T] stands for: repeats merged, then blanks dropped.

    Source: the map B of Graves et al. 2006, section 3.1.
    """
    ids = np.asarray(ids)
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return ids[first & (ids != blank_id)]
