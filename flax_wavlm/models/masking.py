"""TODO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

# --- SpecAugment --------------------------------------------------------------------------------------------


def span_mask(key: Array, lengths: Array, size: int, *, share: float, span: int, min_spans: int) -> Array:
    """SpecAugment's mask over one axis (Park et al. 2019; wav2vec 2.0, appendix A.2), made on the device.

    Each row gets `share * length / span` spans, rounded up or down at random, at least `min_spans`, with
    distinct starts drawn uniformly; spans may overlap. A row shorter than a span gets none.

    Args:
        lengths: [B] int, the valid length of each row.
        size: the length of the axis.
    Returns: [B, size] bool, True where masked. Source: `_compute_mask_indices`, whose rounding is one draw
        for the whole batch; here it is one for each row.
    """
    round_key, start_key = jax.random.split(key)
    noise = jax.random.uniform(round_key, lengths.shape)
    count = jnp.floor(share * lengths / span + noise).astype(jnp.int32)
    count = jnp.minimum(jnp.maximum(count, min_spans), size // span)
    starts_available = jnp.maximum(lengths - (span - 1), 0)
    count = jnp.minimum(count, starts_available)

    # The `count` positions with the smallest random numbers are a draw without replacement.
    order = jax.random.uniform(start_key, (lengths.shape[0], size))
    order = jnp.where(jnp.arange(size) < starts_available[:, None], order, 2.0)
    rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
    started = jnp.cumsum(rank < count[:, None], axis=1)  # spans begun up to and including each position
    ended = jnp.pad(started, ((0, 0), (span, 0)))[:, :size]
    return started > ended
