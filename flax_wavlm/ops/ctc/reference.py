"""TODO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

LOG_ZERO = -1e30  # finite, so that no difference of two is NaN
UNROLL = 4  # frames in a round of the loop over frames, whose rounds are short


def forward_by_scan(emission: Array, may_skip: Array) -> tuple[Array, Array]:
    """The recursion itself.

    Args: the states' log probabilities [B, T, S]; may_skip [B, S] bool, the states that can follow the last
        but one before them. Returns: log alpha [B, T, S] less its largest of each frame; and those [B, T].
    """

    def advance(log_alpha: Array, now: Array) -> tuple[Array, tuple[Array, Array]]:
        one = jnp.pad(log_alpha[:, :-1], ((0, 0), (1, 0)), constant_values=LOG_ZERO)
        two = jnp.pad(log_alpha[:, :-2], ((0, 0), (2, 0)), constant_values=LOG_ZERO)
        two = jnp.where(may_skip, two, LOG_ZERO)
        highest = jnp.maximum(jnp.maximum(log_alpha, one), two)
        total = jnp.exp(log_alpha - highest) + jnp.exp(one - highest) + jnp.exp(two - highest)
        log_alpha = highest + jnp.log(total) + now
        largest = jnp.max(log_alpha, axis=1)
        log_alpha = log_alpha - largest[:, None]  # else sums over hundreds of frames lose digits
        return log_alpha, (log_alpha, largest)

    # Before the first frame: in the blank that precedes all, with no way to stay out of the first label.
    start = jnp.where(jnp.arange(may_skip.shape[1]) == 0, 0.0, LOG_ZERO) * jnp.ones((len(may_skip), 1))
    _, (log_alpha, largest) = jax.lax.scan(advance, start, emission.swapaxes(0, 1), unroll=UNROLL)
    return log_alpha.swapaxes(0, 1), largest.T
