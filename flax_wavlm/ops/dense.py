"""TODO."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array

# --- Dense maps ---------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """The last axis of `x` with the first of `kernel`, in their type: [..., I], [I, *O] to [..., *O].

    For the automatic gradient XLA transposes that of the output in memory on a CPU, even where it is the
    larger operand.
    """
    return jnp.tensordot(x, kernel, 1, precision=precision)


def _product_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return product(x, kernel, precision), (x, kernel)


def _product_backward(precision: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = list(range(x.ndim - 1))
    flat_dy, flat_kernel = dy.reshape(*x.shape[:-1], -1), kernel.reshape(len(kernel), -1)
    dx = jnp.tensordot(flat_dy, flat_kernel.T, 1, precision=precision)
    if x.size <= dy.size:  # the first of the two is what gets transposed
        d_kernel = jnp.tensordot(x, dy, (rows, rows), precision=precision)
    else:
        d_kernel = jnp.moveaxis(jnp.tensordot(dy, x, (rows, rows), precision=precision), -1, 0)
    return dx, d_kernel


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """[..., *O] and [*O], in the type of x; the bias's gradient is summed in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias: Array, dy: Array) -> tuple[Array, Array]:
    rows = tuple(range(dy.ndim - bias.ndim))
    return dy, jnp.sum(at_least_float32(dy), axis=rows).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)
