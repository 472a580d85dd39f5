"""GELU: x times the normal distribution's function of x (Hendrycks & Gimpel 2016)."""

from __future__ import annotations

import math

import jax

from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def gelu(x: Array) -> Array:
    """See `flax_wavlm.ops.gelu.api.gelu`."""
    wide = at_least_float32(x)
    return (wide * normal_cdf(wide)).astype(x.dtype)


def normal_cdf(x: Array) -> Array:
    """The normal distribution's function. By erf, as torch has it."""
    return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))
