"""Dropout (Srivastava et al. 2014), from 16 random bits an element."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
STEPS = 2**16  # a rate is rounded to a multiple of 1 / STEPS


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Zeroes a share `rate` of `x` and scales the rest to keep the mean; the identity without a key."""
    return x if key is None else drop(x, draw_keep_mask(key, x.shape, rate), rate)


def draw_keep_mask(key: Array, shape: tuple[int, ...], rate: float) -> Array | None:
    """Which elements stay, bool of that shape; None if all do. A share `rate` of them does not."""
    dropped = round(rate * STEPS)
    if dropped == 0:
        return None
    if dropped == STEPS:
        return jnp.zeros(shape, bool)
    # A random word serves two elements, half a row apart. Generating words is the cost, and without a barrier
    # the compiler would generate each word twice, once for either element.
    *rows, size = shape
    words = jax.lax.optimization_barrier(jax.random.bits(key, (*rows, -(-size // 2)), jnp.uint32))
    halves = jnp.concatenate([words & np.uint32(0xFFFF), words >> 16], axis=-1)
    return halves[..., :size] >= np.uint32(dropped)


def drop(x: Array, keep_mask: Array | None, rate: float) -> Array:
    """`x` where `keep_mask`, scaled to keep the mean; 0 elsewhere."""
    if keep_mask is None:
        return x
    dropped = round(rate * STEPS)
    return jnp.where(keep_mask, x / (1 - dropped / STEPS), 0) if dropped < STEPS else jnp.zeros_like(x)
