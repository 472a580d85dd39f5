"""Dense maps, as two operations: the product, and the addition of the bias.

They are apart because a norm that follows may add the bias (`flax_wavlm.ops.norm`).

Formula: y = x W + b. Residuals: x and W; the bias.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_wavlm.ops import platform
from flax_wavlm.ops.dense import reference
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def _product_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return reference.product(x, kernel, precision), (x, kernel)


def _product_backward(precision: str, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    rows = list(range(x.ndim - 1))
    flat_dy, flat_kernel = dy.reshape(*x.shape[:-1], -1), kernel.reshape(len(kernel), -1)
    dx = jnp.tensordot(flat_dy, flat_kernel.T, 1, precision=precision)
    # XLA transposes the first operand in memory on a CPU, so the smaller one comes first.
    if x.size <= dy.size:
        d_kernel = jnp.tensordot(x, dy, (rows, rows), precision=precision)
    else:
        d_kernel = jnp.moveaxis(jnp.tensordot(dy, x, (rows, rows), precision=precision), -1, 0)
    return dx, d_kernel


@platform.operation(reference.product, forward=_product_forward, backward=_product_backward, static=(2,))
def product(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """The last axis of `x` with the first of `kernel`: [..., I], [I, *O] to [..., *O], in their type.

    `precision` is that of float32 products. A custom VJP does not take it from the context.
    """
    return reference.product(x, kernel, precision)


def _add_bias_forward(x: Array, bias: Array) -> tuple[Array, Array]:
    return reference.add_bias(x, bias), bias


def _add_bias_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    rows = tuple(range(dy.ndim - bias.ndim))
    return dy, jnp.sum(at_least_float32(dy), axis=rows).astype(bias.dtype)


@platform.operation(reference.add_bias, forward=_add_bias_forward, backward=_add_bias_backward)
def add_bias(x: Array, bias: Array) -> Array:
    """[..., *O] and [*O], in the type of x. The gradient of the bias is summed in float32."""
    return reference.add_bias(x, bias)
