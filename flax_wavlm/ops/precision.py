"""TODO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def at_least_float32(x: Array) -> Array:
    """In float32, or as it is where it is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
