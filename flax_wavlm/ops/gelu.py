"""TODO."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array

# --- GELU ---------------------------------------------------------------------------------------------------


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """x times the normal distribution's function of x (Hendrycks & Gimpel 2016), computed in float32.

    By erf, as torch has it: `jax.nn.gelu` goes by erfc, which takes longer on a CPU. Keeps x alone.
    """
    wide = at_least_float32(x)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = at_least_float32(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return (((_normal_cdf(wide) + wide * density) * dy).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), gelu_backward)


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
