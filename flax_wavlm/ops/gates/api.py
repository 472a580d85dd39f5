"""The gates of WavLM's position bias, from the input of attention (Chen et al. 2022, section III-B).

Formula: a * (b * const - 1) + 2, with a and b the sigmoids of the sums of four outputs each of a dense map.
Residuals: x, and the slopes of the gates [B, H, T] along the two sums and along const.
Implementations: plain jnp, and a kernel for the gradient on NVIDIA GPUs in `gpu.py`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops import platform
from flax_wavlm.ops.gates import reference
from flax_wavlm.ops.precision import at_least_float32

Array = jax.Array

_GPU_BACKWARD = platform.GpuKernel("flax_wavlm.ops.gates.gpu", "backward")


def gates_gradient(
    precision: str, x: Array, kernel: Array, d_x: Array, d_gate: Array, *slopes: Array
) -> tuple[Array, ...]:
    """The gradients of x, of the two sums of kernel and of bias, and of const; plain jnp.

    Args: x [B, T, H, K], kernel [K, 8]; d_x [B, T, H, K], the gradient that reaches x from elsewhere;
        d_gate [B, H, T]; `slopes` of the gate along the two sums and along const, each [B, H, T].
    Returns: [B, T, H, K] in the type of x; [K, 2], [2] and [H] in float32.
    """
    d_a, d_b, d_const = (d_gate * slope for slope in slopes)
    d_sums = jnp.stack([d_a, d_b])  # [2, B, H, T]
    by_frame = d_sums.swapaxes(2, 3)
    kernel_sums = at_least_float32(kernel).reshape(len(kernel), 2, 4).sum(-1)
    dx = d_x + jnp.einsum("gbth,kg->bthk", by_frame, kernel_sums, precision=precision)
    # A sum in place of a product, for which XLA would transpose x in memory on a CPU.
    d_kernel = jnp.sum(by_frame[..., None] * at_least_float32(x), axis=(1, 2, 3)).T
    return dx.astype(x.dtype), d_kernel, jnp.sum(d_sums, axis=(1, 2, 3)), jnp.sum(d_const, axis=(0, 2))


def _forward(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str
) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
    a, b = reference.sigmoids(x, kernel, bias, precision)
    by_head = const[:, None]
    slope_a = b * by_head - 1
    slopes = slope_a * a * (1 - a), by_head * a * b * (1 - b), a * b
    return (x, a * slope_a + 2), (x, kernel, bias, const, *slopes)


def _backward(
    precision: str, residuals: tuple[Array, ...], gradients: tuple[Array, Array]
) -> tuple[Array, ...]:
    x, kernel, bias, const, *slopes = residuals
    d_x, d_gate = gradients
    arrays = reference.by_head(x, kernel), kernel, reference.by_head(d_x, kernel), d_gate, *slopes
    plain = functools.partial(gates_gradient, precision)
    dx, d_kernel, d_bias, d_const = platform.rows_by_platform(plain, _GPU_BACKWARD, (), *arrays)
    # The four outputs of a sum have its gradient each.
    d_kernel, d_bias = jnp.repeat(d_kernel, 4, axis=1), jnp.repeat(d_bias, 4)
    parameters = zip((d_kernel, d_bias, d_const), (kernel, bias, const), strict=True)
    return dx.reshape(x.shape), *(gradient.astype(array.dtype) for gradient, array in parameters)


@platform.operation(reference.gates, forward=_forward, backward=_backward, static=(4,))
def gates(
    x: Array, kernel: Array, bias: Array, const: Array, precision: str = "highest"
) -> tuple[Array, Array]:
    """The factor of the position bias for each head and query. Source: `WavLMAttention.forward`.

    Args: x [B, T, D], kernel [K, 8], bias [8], const [H]; `precision` is that of float32 products.
    Returns: x as it came, and the gates [B, H, T] in float32. Whoever uses x further takes the one returned:
        the gradient that arrives through it is added in the same pass over memory.
    """
    return reference.gates(x, kernel, bias, const, precision)
