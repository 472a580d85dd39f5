"""TODO."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from flax_wavlm.ops.gelu import gelu_backward
from flax_wavlm.ops.norm import gpu as fused_norm
from flax_wavlm.ops.norm.reference import (
    norm,
    norm_gelu_reference,
    norm_gradient,
    residual_norm_reference,
    standardise,
)
from flax_wavlm.ops.platform import fused_by_platform

Array = jax.Array

# --- LayerNorm ----------------------------------------------------------------------------------------------

# Each in plain operations, and for CUDA in kernels of fused_norm.py.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """LayerNorm over the last axis (Ba et al. 2016), in float32 whatever comes in; the result in `dtype`.

    Keeps x alone, where the automatic gradient keeps three arrays of its size.
    """
    (y,) = fused_by_platform(norm, fused_norm.forward, (eps, dtype), x, scale, bias)
    return y


def _layer_norm_forward(
    x: Array, scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, tuple[Array, Array]]:
    return layer_norm(x, scale, bias, eps, dtype), (x, scale)


def _layer_norm_backward(eps: float, dtype: Any, saved: tuple[Array, Array], dy: Array) -> tuple[Array, ...]:
    return fused_by_platform(norm_gradient, fused_norm.backward, (eps, ()), *saved, dy)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def residual_norm(
    x: Array, branch: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, Array]:
    """A branch's output added to the residual stream `x`, and `layer_norm` of the sum.

    Args: x [..., D]; `branch`: delta [..., D], perhaps with a bias [D] still to be added; scale, bias [D].
    Returns: x + (delta + its bias) in the type of x, and the norm of that in `dtype`. Keeps the sum alone.
    """
    return fused_by_platform(
        residual_norm_reference, fused_norm.forward, (eps, dtype), x, *branch, scale, bias
    )


def _residual_norm_forward(
    x: Array, branch: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    total, y = residual_norm(x, branch, scale, bias, eps, dtype)
    types = tuple(jnp.zeros(0, part.dtype) for part in branch)  # of which nothing else is wanted
    return (total, y), (total, scale, types)


def _residual_norm_backward(
    eps: float, dtype: Any, saved: tuple[Any, ...], gradients: tuple[Array, Array]
) -> tuple[Any, ...]:
    total, scale, types = saved
    d_total, dy = gradients
    settings = eps, tuple(part.dtype for part in types)
    dx, *d_branch, d_scale, d_bias = fused_by_platform(
        norm_gradient, fused_norm.backward, settings, total, scale, dy, d_total
    )
    return dx, tuple(d_branch), d_scale, d_bias


residual_norm.defvjp(_residual_norm_forward, _residual_norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def norm_gelu(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """`gelu` of `layer_norm`, in float32; the result in `dtype`. Keeps x alone."""
    fused = functools.partial(fused_norm.forward, gelu=True)
    (y,) = fused_by_platform(norm_gelu_reference, fused, (eps, dtype), x, scale, bias)
    return y


def _norm_gelu_forward(
    x: Array, scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    return norm_gelu(x, scale, bias, eps, dtype), (x, scale, bias)


def _norm_gelu_backward(eps: float, dtype: Any, saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, scale, bias = saved
    normal, _ = standardise(x, eps)
    (d_norm,) = gelu_backward(normal * scale + bias, dy)
    return norm_gradient(eps, (), x, scale, d_norm)  # in plain operations: few train the encoder


norm_gelu.defvjp(_norm_gelu_forward, _norm_gelu_backward)
