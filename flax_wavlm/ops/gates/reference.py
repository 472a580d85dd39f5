"""The gates of WavLM's position bias (Chen et al. 2022, section III-B)."""

from __future__ import annotations

import jax

from flax_wavlm.ops.dense import reference as dense_reference
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def by_head(x: Array, kernel: Array) -> Array:
    """[B, T, D] -> [B, T, H, K]."""
    return x.reshape(*x.shape[:2], x.shape[2] // len(kernel), len(kernel))


def sigmoids(x: Array, kernel: Array, bias: Array, precision: str) -> tuple[Array, Array]:
    """a and b [B, H, T] in float32: of the 8 outputs for each head, the sigmoids of the sums of four each."""
    groups = dense_reference.add_bias(dense_reference.product(by_head(x, kernel), kernel, precision), bias)
    groups = at_least_float32(groups)
    sums = groups.reshape(*groups.shape[:3], 2, 4).sum(-1)
    a, b = jax.nn.sigmoid(sums).transpose(3, 0, 2, 1)
    return a, b


def gates(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str = "highest"
) -> tuple[Array, Array]:
    """See `flax_wavlm.ops.gates.api.gates`."""
    a, b = sigmoids(x, kernel, bias, precision)
    return x, a * (b * const[:, None] - 1) + 2
