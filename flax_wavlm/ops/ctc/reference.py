"""Connectionist temporal classification (Graves et al. 2006): the likelihood of labels, by its recursion."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Forward = Callable[[Array, Array], tuple[Array, Array]]

LOG_ZERO = -1e30  # finite, so that no difference of two is NaN
UNROLL = 4  # frames in a round of the loop over frames: one frame is little work


def forward(emission: Array, may_skip: Array) -> tuple[Array, Array]:
    """The recursion over frames.

    Args: `emission` [B, T, S], the log probabilities of the states; `may_skip` [B, S] bool, True for states
        that can follow the state two before them.
    Returns: log alpha [B, T, S] less its largest value in each frame; and these values [B, T].
    """

    def advance(log_alpha: Array, now: Array) -> tuple[Array, tuple[Array, Array]]:
        one = jnp.pad(log_alpha[:, :-1], ((0, 0), (1, 0)), constant_values=LOG_ZERO)
        two = jnp.pad(log_alpha[:, :-2], ((0, 0), (2, 0)), constant_values=LOG_ZERO)
        two = jnp.where(may_skip, two, LOG_ZERO)
        highest = jnp.maximum(jnp.maximum(log_alpha, one), two)
        total = jnp.exp(log_alpha - highest) + jnp.exp(one - highest) + jnp.exp(two - highest)
        log_alpha = highest + jnp.log(total) + now
        largest = jnp.max(log_alpha, axis=1)
        log_alpha = log_alpha - largest[:, None]  # without this, sums over hundreds of frames lose digits
        return log_alpha, (log_alpha, largest)

    # Before the first frame a path is in the first blank: its first frame is that blank, or the first label.
    start = jnp.where(jnp.arange(may_skip.shape[1]) == 0, 0.0, LOG_ZERO) * jnp.ones((len(may_skip), 1))
    _, (log_alpha, largest) = jax.lax.scan(advance, start, emission.swapaxes(0, 1), unroll=UNROLL)
    return log_alpha.swapaxes(0, 1), largest.T


def recursion(
    forward: Forward, log_probs: Array, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> tuple[Array, Array, Array, Array]:
    """Forward variables (the paper's section 4.1) over the states: blank, label, blank, ..., label, blank.

    Args: `forward` computes them, as the function of this module does; log_probs [B, T, V]; the others as for
        `flax_wavlm.ops.ctc.api.ctc_loss`, with every label after a row's last one replaced by the blank.
    Returns: the loss [B], anything finite where the labels do not fit; log alpha [B, T, S] less its largest
        value in each frame; the log probabilities of the states [B, T, S]; and the states' labels [B, S],
        with S = 2 * labels + 1.
    """
    batch, time, _ = log_probs.shape
    states = jnp.full((batch, 2 * labels.shape[1] + 1), blank_id).at[:, 1::2].set(labels)
    index = jnp.arange(states.shape[1])
    before = jnp.pad(states[:, :-2], ((0, 0), (2, 0)), constant_values=blank_id)
    may_skip = (states != blank_id) & (states != before)  # the blank before a label unlike the last one
    emission = jnp.take_along_axis(log_probs, states[:, None, :], axis=2)

    log_alpha, largest = forward(emission, may_skip)
    last = jnp.maximum(frames - 1, 0)[:, None, None]
    final = jnp.take_along_axis(log_alpha, last, axis=1)[:, 0]  # [B, S]
    ends = (index == 2 * label_lengths[:, None]) | (index == 2 * label_lengths[:, None] - 1)
    log_likelihood = jax.nn.logsumexp(jnp.where(ends, final, LOG_ZERO), axis=1)
    log_likelihood += jnp.sum(jnp.where(jnp.arange(time) < frames[:, None], largest, 0), axis=1)
    return jnp.where(frames > 0, -log_likelihood, 0.0), log_alpha, emission, states


def less_prior(log_probs: Array, log_prior: Array | None) -> Array:
    """Log probabilities [..., V] less a log prior [V], which has no gradient; None: as they are."""
    return log_probs if log_prior is None else log_probs - jax.lax.stop_gradient(log_prior)


def negative_log_likelihood(
    logits: Array, log_prior: Array | None, frames: Array, labels: Array, label_lengths: Array, blank_id: int
) -> Array:
    """The loss [B] of `flax_wavlm.ops.ctc.api.ctc_loss`; anything finite where the labels do not fit."""
    scores = less_prior(jax.nn.log_softmax(logits), log_prior)
    return recursion(forward, scores, frames, labels, label_lengths, blank_id)[0]
