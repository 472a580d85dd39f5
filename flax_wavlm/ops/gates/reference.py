"""TODO."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_wavlm.ops.dense import add_bias, product
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array


def by_head(x: Array, kernel: Array) -> Array:
    """[B, T, D] -> [B, T, H, K]."""
    return x.reshape(*x.shape[:2], x.shape[2] // len(kernel), len(kernel))


def gates_and_slopes(precision: str, x: Array, kernel: Array, bias: Array, const: Array) -> tuple[Array, ...]:
    groups = at_least_float32(add_bias(product(by_head(x, kernel), kernel, precision), bias))
    sums = groups.reshape(*groups.shape[:3], 2, 4).sum(-1)
    a, b = jax.nn.sigmoid(sums).transpose(3, 0, 2, 1)
    const = const[:, None]
    slope = b * const - 1  # along a
    return a * slope + 2, slope * a * (1 - a), const * a * b * (1 - b), a * b


def gates_gradient(
    precision: str, x: Array, kernel: Array, d_x: Array, d_gate: Array, *slopes: Array
) -> tuple[Array, ...]:
    """As `fused_gates.backward`: the gradients of x, of the two sums of kernel and of bias, and of const."""
    d_a, d_b, d_const = (d_gate * slope for slope in slopes)
    d_sums = jnp.stack([d_a, d_b])  # [2, B, H, T]
    by_frame = d_sums.swapaxes(2, 3)
    kernel_sums = at_least_float32(kernel).reshape(len(kernel), 2, 4).sum(-1)
    dx = d_x + jnp.einsum("gbth,kg->bthk", by_frame, kernel_sums, precision=precision)
    # No product, for which XLA transposes x in memory on a CPU.
    d_kernel = jnp.sum(by_frame[..., None] * at_least_float32(x), axis=(1, 2, 3)).T
    return dx.astype(x.dtype), d_kernel, jnp.sum(d_sums, axis=(1, 2, 3)), jnp.sum(d_const, axis=(0, 2))
