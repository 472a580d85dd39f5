"""TODO."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops.gates import gpu as fused_gates
from flax_wavlm.ops.gates.reference import by_head, gates_and_slopes, gates_gradient
from flax_wavlm.ops.platform import fused_by_platform

Array = jax.Array

# --- Attention's gates --------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def gates(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str = "highest"
) -> tuple[Array, Array]:
    """The factor of the position bias for each head and query, from the attention's input.

    A dense map makes 8 outputs of a head's part of x; a and b are the sigmoids of the sums of four each, and
    the gate is a * (b * const - 1) + 2 (Chen et al. 2022, section III-B).

    Args: x [B, T, D], kernel [K, 8], bias [8], const [H]. Returns: x as it came, and the gates [B, H, T] in
    float32. Who uses x further takes the one returned: the gradient from there is added in the same pass over
    memory. Keeps x, and the slopes of the gates [B, H, T] along the two sums and const.
    """
    gate, *_ = gates_and_slopes(precision, x, kernel, bias, const)
    return x, gate


def _gates_forward(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    gate, *slopes = gates_and_slopes(precision, x, kernel, bias, const)
    return (x, gate), (x, kernel, bias, const, *slopes)


def _gates_backward(
    precision: str, saved: tuple[Array, ...], gradients: tuple[Array, Array]
) -> tuple[Array, ...]:
    x, kernel, bias, const, *slopes = saved
    d_x, d_gate = gradients
    arrays = by_head(x, kernel), kernel, by_head(d_x, kernel), d_gate, *slopes
    plainly = functools.partial(gates_gradient, precision)
    dx, d_kernel, d_bias, d_const = fused_by_platform(plainly, fused_gates.backward, (), *arrays)
    d_kernel, d_bias = jnp.repeat(d_kernel, 4, axis=1), jnp.repeat(d_bias, 4)  # each of four is as their sum
    parameters = zip((d_kernel, d_bias, d_const), (kernel, bias, const), strict=True)
    return dx.reshape(x.shape), *(gradient.astype(array.dtype) for gradient, array in parameters)


gates.defvjp(_gates_forward, _gates_backward)
