"""A dense map: a matrix product over the last axis, and a bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def product(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """See `flax_wavlm.ops.dense.api.product`."""
    return jnp.tensordot(x, kernel, 1, precision=precision)


def add_bias(x: Array, bias: Array) -> Array:
    """See `flax_wavlm.ops.dense.api.add_bias`."""
    return x + bias.astype(x.dtype)
