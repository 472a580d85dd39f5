"""The gradient of the positional convolution's kernel, a few taps at a time: the form for CPUs.

For every few taps there is one matrix product a group, of the shifted inputs with the output's gradient.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

TAPS_AT_ONCE = 4  # with more the products are larger, but their inputs outgrow a CPU's cache


def kernel_gradient(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    """The gradient of `grouped_conv`'s kernel: [taps, D / groups, D], in float32 (or wider)."""
    taps, size, channels = kernel.shape
    batch, time, _ = x.shape
    steps = -(-taps // TAPS_AT_ONCE)
    # Time is the last axis, so that shifted inputs are copied in long runs.
    x = pad_time(x, taps // 2, (taps - 1) // 2 + steps * TAPS_AT_ONCE - taps)
    x = x.reshape(batch, -1, channels // size, size).transpose(2, 3, 0, 1)  # [G, in, B, T + ...]
    dy = dy.reshape(batch * time, -1, size).swapaxes(0, 1)  # [G, B * T, out]
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def some_taps(first: Array) -> Array:
        shifted = [jax.lax.dynamic_slice_in_dim(x, first + tap, time, axis=3) for tap in range(TAPS_AT_ONCE)]
        rows = jnp.stack(shifted, axis=1).reshape(len(dy), TAPS_AT_ONCE * size, batch * time)
        return jnp.einsum("gin,gno->gio", rows, dy, precision=precision, preferred_element_type=wide)

    d_kernel = jax.lax.map(some_taps, TAPS_AT_ONCE * jnp.arange(steps))
    d_kernel = d_kernel.reshape(steps, -1, TAPS_AT_ONCE, size, size)  # [steps, G, taps at once, in, out]
    return d_kernel.transpose(0, 2, 3, 1, 4).reshape(-1, size, channels)[:taps]


def pad_time(x: Array, before: int, after: int) -> Array:
    """x [B, T, D] with frames of zeros before and after."""
    return jnp.pad(x, ((0, 0), (before, after), (0, 0)))
