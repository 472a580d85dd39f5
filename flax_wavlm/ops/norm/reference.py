"""Layer norm (Ba et al. 2016), alone and with what stands before or behind it in WavLM."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flax_wavlm.ops.gelu import reference as gelu_reference
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def standardise(x: Array, eps: float) -> tuple[Array, Array]:
    """x with mean 0 and variance 1 along its last axis, and one over its standard deviation."""
    x = at_least_float32(x)
    x = x - jnp.mean(x, axis=-1, keepdims=True)  # the variance in two passes, as torch does
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * factor, factor


def layer_norm(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """See `flax_wavlm.ops.norm.api.layer_norm`."""
    standard, _ = standardise(x, eps)
    return (standard * scale + bias).astype(dtype)


def residual_norm(
    x: Array, update: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, Array]:
    """See `flax_wavlm.ops.norm.api.residual_norm`."""
    delta, *delta_bias = update
    total = (x + sum(delta_bias, start=at_least_float32(delta))).astype(x.dtype)
    return total, layer_norm(total, scale, bias, eps, dtype)


def norm_gelu(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """See `flax_wavlm.ops.norm.api.norm_gelu`."""
    y = layer_norm(x, scale, bias, eps, at_least_float32(x).dtype)
    return gelu_reference.gelu(y).astype(dtype)
