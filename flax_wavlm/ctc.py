"""Connectionist temporal classification (Graves et al. 2006): the loss, and greedy decoding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array


def ctc_loss(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, *, blank_id: int
) -> tuple[Array, Array]:
    """The negative log likelihood of each clip's labels, in float32.

    Args:
        logits: [B, T, V], not normalised.
        frames: [B] int, the valid frames of each clip.
        labels: [B, S] int; what follows the first `label_lengths` [B] of a row is ignored.
        blank_id: the blank's index among the V outputs.
    Returns:
        loss [B], and feasible [B] bool: whether the labels, with a blank between equal neighbours, fit in the
        frames. Where they do not, the likelihood is 0: loss and gradient are 0 here, as torch's are with
        `zero_infinity`. Where they fit, equal to `torch.nn.functional.ctc_loss(reduction="none")`.
    """
    positions = jnp.arange(labels.shape[1])
    padded_labels = positions >= label_lengths[:, None]
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & ~padded_labels[:, 1:], axis=1)
    feasible = label_lengths + repeats <= frames
    padded_frames = jnp.arange(logits.shape[1]) >= frames[:, None]
    loss = optax.ctc_loss(
        logits.astype(jnp.float32),
        padded_frames.astype(jnp.float32),
        labels,
        padded_labels.astype(jnp.float32),
        blank_id=blank_id,
    )
    return jnp.where(feasible, loss, 0.0), feasible


def reduced_sum(loss: Array, label_lengths: Array, valid: Array, *, reduction: str) -> Array:
    """The sum over valid clips [B] of what torch's reduction "mean" or "sum" adds up.

    "mean" weighs each clip by one over its labels, and then divides by the clips: that division is left to
    the caller, who knows the clips of the whole batch. "sum" needs none.
    """
    if reduction == "mean":
        loss = loss / jnp.maximum(label_lengths, 1)
    return jnp.sum(jnp.where(valid, loss, 0.0))


def collapse(ids: np.ndarray, blank_id: int) -> np.ndarray:
    """The labels that a path of frame labels [T] stands for: repeats merged, then blanks dropped."""
    ids = np.asarray(ids)
    first = np.ones(len(ids), bool)
    first[1:] = ids[1:] != ids[:-1]
    return ids[first & (ids != blank_id)]
