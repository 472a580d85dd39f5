"""GELU with a gradient that keeps nothing but its input.

Formula: x * Phi(x), with Phi the normal distribution's function, computed in float32.
Residuals: x.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from flax_wavlm.ops import platform
from flax_wavlm.ops.gelu import reference
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def _forward(x: Array) -> tuple[Array, Array]:
    return reference.gelu(x), x


def gelu_gradient(x: Array, dy: Array) -> tuple[Array]:
    """The gradient of `gelu` at x: (Phi(x) + x * density(x)) * dy, in the type of x."""
    wide = at_least_float32(x)
    density = jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return (((reference.normal_cdf(wide) + wide * density) * dy).astype(x.dtype),)


@platform.operation(reference.gelu, forward=_forward, backward=gelu_gradient)
def gelu(x: Array) -> Array:
    """x times the normal distribution's function of x (Hendrycks & Gimpel 2016), in the type of x.

    By erf, as `torch.nn.functional.gelu` has it: `jax.nn.gelu` goes by erfc, which takes longer on a CPU.
    """
    return reference.gelu(x)
