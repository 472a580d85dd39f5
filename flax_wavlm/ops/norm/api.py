"""Layer norms, each with what stands before or behind it: one pass over memory in place of several.

Formula: (x - mean) / sqrt(variance + eps) * scale + bias along the last axis, in float32.
Residuals: x alone (`layer_norm`, `norm_gelu`), or the sum alone (`residual_norm`). The automatic gradient
keeps three arrays of that size.
Implementations: plain jnp, and kernels for NVIDIA GPUs in `gpu.py`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from flax_wavlm.ops import platform
from flax_wavlm.ops.gelu.api import gelu_gradient
from flax_wavlm.ops.norm import reference

Array = jax.Array

_GPU_FORWARD = platform.GpuKernel("flax_wavlm.ops.norm.gpu", "forward")
_GPU_GELU = platform.GpuKernel("flax_wavlm.ops.norm.gpu", "forward_gelu")
_GPU_BACKWARD = platform.GpuKernel("flax_wavlm.ops.norm.gpu", "backward")


def norm_gradient(
    eps: float, types: tuple[Any, ...], x: Array, scale: Array, dy: Array, *d_x: Array
) -> tuple[Array, ...]:
    """The gradients of x, of the parts of an update that is in x, of scale and of bias; plain jnp.

    Args:
        types: of the update's parts: none, delta's, or delta's and its bias's.
        x: [..., D], which the norm is of; scale [D]; dy [..., D].
        d_x: [..., D], the gradient that reaches x from elsewhere, or nothing.
    """
    standard, factor = reference.standardise(x, eps)
    dy = dy.astype(standard.dtype)
    d_standard = dy * scale
    along = jnp.mean(d_standard * standard, axis=-1, keepdims=True)
    dx = factor * (d_standard - jnp.mean(d_standard, axis=-1, keepdims=True) - standard * along)
    dx = sum(d_x, start=dx)
    rows = tuple(range(x.ndim - 1))
    d_update = [dx.astype(kind) for kind in types[:1]] + [jnp.sum(dx, axis=rows) for _ in types[1:]]
    return dx.astype(x.dtype), *d_update, jnp.sum(dy * standard, axis=rows), jnp.sum(dy, axis=rows)


# --- layer_norm ---------------------------------------------------------------------------------------------


def _layer_norm(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    def plain(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array]:
        return (reference.layer_norm(x, scale, bias, eps, dtype),)

    (y,) = platform.rows_by_platform(plain, _GPU_FORWARD, (eps, dtype), x, scale, bias)
    return y


def _layer_norm_forward(
    x: Array, scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _layer_norm(x, scale, bias, eps, dtype), (x, scale)


def _layer_norm_backward(
    eps: float, dtype: Any, residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, ...]:
    return platform.rows_by_platform(norm_gradient, _GPU_BACKWARD, (eps, ()), *residuals, dy)


@platform.operation(
    reference.layer_norm, forward=_layer_norm_forward, backward=_layer_norm_backward, static=(3, 4)
)
def layer_norm(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """Layer norm over the last axis (Ba et al. 2016), in float32 whatever comes in.

    Args: x [..., D], scale and bias [D]. Returns: [..., D] in `dtype`.
    """
    return _layer_norm(x, scale, bias, eps, dtype)


# --- residual_norm ------------------------------------------------------------------------------------------


def _residual_norm(
    x: Array, update: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, Array]:
    def plain(eps: float, dtype: Any, x: Array, *arrays: Array) -> tuple[Array, Array]:
        *update, scale, bias = arrays
        return reference.residual_norm(x, tuple(update), scale, bias, eps, dtype)

    total, y = platform.rows_by_platform(plain, _GPU_FORWARD, (eps, dtype), x, *update, scale, bias)
    return total, y


def _residual_norm_forward(
    x: Array, update: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
    total, y = _residual_norm(x, update, scale, bias, eps, dtype)
    types = tuple(jnp.zeros(0, part.dtype) for part in update)  # the gradient needs nothing else of it
    return (total, y), (total, scale, types)


def _residual_norm_backward(
    eps: float, dtype: Any, residuals: tuple[Any, ...], gradients: tuple[Array, Array]
) -> tuple[Any, ...]:
    total, scale, types = residuals
    d_total, dy = gradients
    settings = eps, tuple(part.dtype for part in types)
    dx, *d_update, d_scale, d_bias = platform.rows_by_platform(
        norm_gradient, _GPU_BACKWARD, settings, total, scale, dy, d_total
    )
    return dx, tuple(d_update), d_scale, d_bias


@platform.operation(
    reference.residual_norm, forward=_residual_norm_forward, backward=_residual_norm_backward, static=(4, 5)
)
def residual_norm(
    x: Array, update: tuple[Array, ...], scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, Array]:
    """A sub-layer's update added to the residual stream `x`, and `layer_norm` of the sum.

    Args: x [..., D]; `update`: delta [..., D], perhaps with a bias [D] still to be added; scale, bias [D].
    Returns: x + (delta + its bias) in the type of x, and the norm of that in `dtype`.
    """
    return _residual_norm(x, update, scale, bias, eps, dtype)


# --- norm_gelu ----------------------------------------------------------------------------------------------


def _norm_gelu(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    def plain(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array]:
        return (reference.norm_gelu(x, scale, bias, eps, dtype),)

    (y,) = platform.rows_by_platform(plain, _GPU_GELU, (eps, dtype), x, scale, bias)
    return y


def _norm_gelu_forward(
    x: Array, scale: Array, bias: Array, eps: float, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    return _norm_gelu(x, scale, bias, eps, dtype), (x, scale, bias)


def _norm_gelu_backward(eps: float, dtype: Any, residuals: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, scale, bias = residuals
    standard, _ = reference.standardise(x, eps)
    (d_norm,) = gelu_gradient(standard * scale + bias, dy)
    return norm_gradient(eps, (), x, scale, d_norm)  # no kernel: few train the feature encoder


@platform.operation(
    reference.norm_gelu, forward=_norm_gelu_forward, backward=_norm_gelu_backward, static=(3, 4)
)
def norm_gelu(x: Array, scale: Array, bias: Array, eps: float, dtype: Any) -> Array:
    """GELU of `layer_norm`, both in float32. Args: x [..., D], scale and bias [D]; the result in `dtype`."""
    return _norm_gelu(x, scale, bias, eps, dtype)
