"""The positional convolution in blocks of frames, as large matrix products: the form for GPUs.

In each group, a block of outputs is one product: all inputs that it depends on, times a Toeplitz matrix of
the taps. A part of that matrix is 0, and the inputs of neighbouring blocks overlap. Both cost less than one
large product gains over many small ones.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from flax_wavlm.ops.positional_conv.taps import pad_time

Array = jax.Array

BLOCK = 16  # frames; with 128 taps an eighth of the matrix is 0, and every input occurs nine times


def convolve(precision: str, left: int, x: Array, kernel: Array) -> Array:
    """As `flax_wavlm.ops.positional_conv.reference.convolve`."""
    time, size = x.shape[1], kernel.shape[1]
    y = jax.lax.dot_general(
        _windows(x, kernel, left),
        _toeplitz(kernel),
        (((2,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=x.dtype,
    )  # [G, B * blocks, BLOCK * size]
    y = y.reshape(len(y), len(x), -1, size)[:, :, :time]
    return y.transpose(1, 2, 0, 3).reshape(x.shape)


def kernel_gradient(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    """As `flax_wavlm.ops.positional_conv.taps.kernel_gradient`."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    d_toeplitz = jax.lax.dot_general(
        _windows(x, kernel, len(kernel) // 2),
        _blocks(dy, kernel.shape[1], -(-x.shape[1] // BLOCK)),
        (((1,), (1,)), ((0,), (0,))),
        precision=precision,
        preferred_element_type=wide,
    )
    (d_kernel,) = jax.linear_transpose(_toeplitz, jax.ShapeDtypeStruct(kernel.shape, wide))(d_toeplitz)
    return d_kernel


def _blocks(x: Array, size: int, count: int) -> Array:
    """[B, T, G * size] -> [G, B * count, BLOCK * size], with zeros behind the last frame."""
    x = pad_time(x, 0, count * BLOCK - x.shape[1])
    x = x.reshape(len(x), count, BLOCK, -1, size).transpose(3, 0, 1, 2, 4)
    return x.reshape(len(x), -1, BLOCK * size)


def _windows(x: Array, kernel: Array, left: int) -> Array:
    """The inputs that each block of outputs depends on: [B, T, G * size] -> [G, B * blocks, W * size].

    W is taps + BLOCK, rounded up to blocks. A window begins with the frame that the block's first output
    multiplies with the first tap.
    """
    taps, size, _ = kernel.shape
    blocks, more = -(-x.shape[1] // BLOCK), -(-taps // BLOCK)
    padded = _blocks(pad_time(x, left, 0), size, blocks + more)
    padded = padded.reshape(len(padded), len(x), blocks + more, -1)
    windows = jnp.concatenate([padded[:, :, i : i + blocks] for i in range(more + 1)], axis=3)
    return windows.reshape(len(windows), len(x) * blocks, -1)


def _toeplitz(kernel: Array) -> Array:
    """[taps, size, G * size] -> [G, W * size, BLOCK * size]: tap w - p for the window's frame w and output p.

    There is no gather, and so no scatter in the transpose: the taps are repeated and cut into rows that are
    one shorter than a repetition. Each row so begins one place earlier in the taps.
    """
    taps, size, channels = kernel.shape
    width = (-(-taps // BLOCK) + 1) * BLOCK
    padded = jnp.pad(kernel, ((0, width + 1 - taps), (0, 0), (0, 0)))
    rows = jnp.broadcast_to(padded, (BLOCK, *padded.shape)).reshape(-1, size, channels)
    rows = rows[: BLOCK * width].reshape(BLOCK, width, size, -1, size)  # [p, w, in, G, out]
    return rows.transpose(3, 1, 2, 0, 4).reshape(-1, width * size, BLOCK * size)
