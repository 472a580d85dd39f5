"""TODO."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops.ctc.gpu import forward_by_kernel
from flax_wavlm.ops.ctc.reference import LOG_ZERO, forward_by_scan

Array = jax.Array


@jax.named_scope("ctc_loss")
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
    labels = jnp.where(padded_labels, blank_id, labels)  # whatever stood there
    loss = _negative_log_likelihood(logits.astype(jnp.float32), frames, labels, label_lengths, blank_id)
    return jnp.where(feasible, loss, 0.0), feasible


# Automatic differentiation would make a second loop over the frames, back in time. The textbook's gradient
# needs the recursion from both ends, and that is one loop: from the end it is the same recursion for the
# reversed clip and labels. Loops over frames are what a GPU is slow at.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _negative_log_likelihood(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> Array:
    """The loss [B] where the labels fit; anything finite where they do not. Arguments as `ctc_loss`."""
    log_probs = jax.nn.log_softmax(logits)
    return _recursion(log_probs, frames, labels, label_lengths, blank_id)[0]


def _with_gradient(
    logits: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> tuple[Array, Array]:
    """The loss [B], and its gradient [B, T, V]: what the model says less what the labels make of it."""
    batch, time, outputs = logits.shape
    log_probs = jax.nn.log_softmax(logits)
    back = jnp.maximum(frames[:, None] - 1 - jnp.arange(time), 0)  # [B, T]: a clip's frames, the last first
    label_back = jnp.maximum(label_lengths[:, None] - 1 - jnp.arange(labels.shape[1]), 0)
    loss, log_alpha, emission, states = _recursion(
        jnp.concatenate([log_probs, jnp.take_along_axis(log_probs, back[:, :, None], axis=1)]),
        jnp.concatenate([frames, frames]),
        jnp.concatenate([labels, jnp.take_along_axis(labels, label_back, axis=1)]),
        jnp.concatenate([label_lengths, label_lengths]),
        blank_id,
    )
    index = jnp.arange(states.shape[1])
    state_back = 2 * label_lengths[:, None] - index  # [B, S]
    log_beta = jnp.take_along_axis(log_alpha[batch:], back[:, :, None], axis=1)
    log_beta = jnp.take_along_axis(log_beta, jnp.maximum(state_back, 0)[:, None, :], axis=2)
    # Both count the frame itself. A frame is in one of the states: the scale of alpha and beta is free.
    log_posterior = log_alpha[:batch] + log_beta - emission[:batch]
    posterior = jax.nn.softmax(jnp.where(state_back[:, None, :] >= 0, log_posterior, -jnp.inf))
    of_outputs = jnp.einsum(
        "bts,bsv->btv", posterior, jax.nn.one_hot(states[:batch], outputs), precision="highest"
    )
    real = (jnp.arange(time) < frames[:, None])[:, :, None]
    return loss[:batch], jnp.where(real, jnp.exp(log_probs) - of_outputs, 0)


def _recursion(
    log_probs: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> tuple[Array, Array, Array, Array]:
    """Forward variables (the paper's section 4.1) over the states: blank, label, blank, ..., label, blank.

    Returns: the loss [B]; log alpha [B, T, S] less its largest of each frame; the states' log probabilities
        [B, T, S]; and their labels [B, S], S = 2 * labels + 1.
    """
    batch, time, _ = log_probs.shape
    states = jnp.full((batch, 2 * labels.shape[1] + 1), blank_id).at[:, 1::2].set(labels)
    index = jnp.arange(states.shape[1])
    before = jnp.pad(states[:, :-2], ((0, 0), (2, 0)), constant_values=blank_id)
    may_skip = (states != blank_id) & (states != before)  # the blank before a label unlike the last one
    emission = jnp.take_along_axis(log_probs, states[:, None, :], axis=2)

    # By the platform that it is compiled for: the only such place.
    log_alpha, largest = jax.lax.platform_dependent(
        emission, may_skip, cuda=forward_by_kernel, default=forward_by_scan
    )
    last = jnp.maximum(frames - 1, 0)[:, None, None]
    final = jnp.take_along_axis(log_alpha, last, axis=1)[:, 0]  # [B, S]
    ends = (index == 2 * label_lengths[:, None]) | (index == 2 * label_lengths[:, None] - 1)
    log_likelihood = jax.nn.logsumexp(jnp.where(ends, final, LOG_ZERO), axis=1)
    log_likelihood += jnp.sum(jnp.where(jnp.arange(time) < frames[:, None], largest, 0), axis=1)
    return jnp.where(frames > 0, -log_likelihood, 0.0), log_alpha, emission, states


def _backward(blank_id: int, gradient: Array, d_loss: Array) -> tuple[Array, None, None, None]:
    return gradient * d_loss[:, None, None], None, None, None


_negative_log_likelihood.defvjp(_with_gradient, _backward)


def reduced_sum(loss: Array, label_lengths: Array, valid: Array, *, reduction: str) -> Array:
    """The sum over valid clips [B] of what torch's reduction "mean" or "sum" adds up.

    "mean" weighs each clip by one over its labels, and then divides by the clips: that division is left to
    the caller, who knows the clips of the whole batch. "sum" needs none.
    """
    if reduction == "mean":
        loss = loss / jnp.maximum(label_lengths, 1)
    return jnp.sum(jnp.where(valid, loss, 0.0))
