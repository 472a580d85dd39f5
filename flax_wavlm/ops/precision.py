"""Which type is computed in, where what comes in may be rounded to bfloat16."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32; as it is where its type is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
