"""TODO."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flax_wavlm.ops.gelu import gelu
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def norm(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array]:
    normal, _ = standardise(x, eps)
    return ((normal * scale + bias).astype(dtype),)


def residual_norm_reference(
    eps: float, dtype: Any, x: Array, delta: Array, *vectors: Array
) -> tuple[Array, Array]:
    *delta_bias, scale, bias = vectors
    total = (x + sum(delta_bias, start=at_least_float32(delta))).astype(x.dtype)
    return total, *norm(eps, dtype, total, scale, bias)


def norm_gelu_reference(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array]:
    (y,) = norm(eps, at_least_float32(x).dtype, x, scale, bias)
    return (gelu(y).astype(dtype),)


def norm_gradient(
    eps: float, types: tuple[Any, ...], x: Array, scale: Array, dy: Array, *d_x: Array
) -> tuple[Array, ...]:
    """The gradients of x, of the parts of a branch in it, of scale and of bias.

    `types`: those of the parts: none, delta's, or delta's and its bias's. `d_x`: what comes to x from
    elsewhere, or nothing.
    """
    normal, factor = standardise(x, eps)
    dy = dy.astype(normal.dtype)
    d_normal = dy * scale
    along = jnp.mean(d_normal * normal, axis=-1, keepdims=True)
    dx = factor * (d_normal - jnp.mean(d_normal, axis=-1, keepdims=True) - normal * along)
    dx = sum(d_x, start=dx)
    rows = tuple(range(x.ndim - 1))
    d_branch = [dx.astype(kind) for kind in types[:1]] + [jnp.sum(dx, axis=rows) for _ in types[1:]]
    return dx.astype(x.dtype), *d_branch, jnp.sum(dy * normal, axis=rows), jnp.sum(dy, axis=rows)


def standardise(x: Array, eps: float) -> tuple[Array, Array]:
    """x with mean 0 and variance 1, and one over its deviation."""
    x = at_least_float32(x)
    x = x - jnp.mean(x, axis=-1, keepdims=True)  # the variance in two passes, as torch does
    factor = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return x * factor, factor
