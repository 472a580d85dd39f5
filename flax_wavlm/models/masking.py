"""SpecAugment (Park et al. 2019), as wav2vec 2.0 and WavLM use it: spans of frames and of features."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_wavlm.models.config import WavLMConfig

Array = jax.Array


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


def mask_frames(x: Array, mask: Array, embedding: Array) -> Array:
    """x [B, T, D] with the mask embedding [D] where the mask [B, T] is True."""
    return jnp.where(mask[:, :, None], embedding, x)


def spec_augment(
    config: WavLMConfig,
    x: Array,
    frame_lengths: Array,
    embedding: Array,
    *,
    mask_time: Array | None,
    key: Array,
) -> Array:
    """Spans of frames become the mask embedding, spans of features 0. Source: `_mask_hidden_states`.

    Args:
        x: [B, T, D].
        frame_lengths: [B] int, the valid frames of each row.
        embedding: [D], what masked frames become.
        mask_time: [B, T] bool, the frames to mask, in place of a draw.
    """
    batch, time, size = x.shape
    time_key, feature_key = jax.random.split(key)
    if mask_time is None and config.apply_spec_augment and config.mask_time_prob > 0:
        mask_time = span_mask(
            time_key,
            frame_lengths,
            time,
            share=config.mask_time_prob,
            span=config.mask_time_length,
            min_spans=config.mask_time_min_masks,
        )
    if mask_time is not None:
        x = mask_frames(x, mask_time, embedding)
    if config.apply_spec_augment and config.mask_feature_prob > 0:
        mask = span_mask(
            feature_key,
            jnp.full(batch, size, jnp.int32),
            size,
            share=config.mask_feature_prob,
            span=config.mask_feature_length,
            min_spans=config.mask_feature_min_masks,
        )
        x = jnp.where(mask[:, None, :], 0, x)
    return x
