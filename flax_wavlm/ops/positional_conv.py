"""TODO."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from flax_wavlm.ops.platform import by_platform

Array = jax.Array

# --- Convolution in groups ----------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def grouped_conv(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """Convolution over time in groups, "same" padding, stride 1, no bias.

    For as many taps and groups as WavLM's positional convolution has, what XLA makes of the automatic
    gradient is many times slower than torch on a CPU, and of the convolution itself on a GPU.

    Args: x [B, T, D], kernel [taps, D / groups, D]. Returns [B, T, D]; an even kernel has its extra zero on
        the left, as the reference's (`WavLMSamePadLayer`).
    """
    return _convolve(precision, kernel.shape[0] // 2, x, kernel)


def _grouped_conv_forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return grouped_conv(x, kernel, precision), (x, kernel)


def _grouped_conv_backward(precision: str, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = saved
    taps, size, _ = kernel.shape
    # dx: the same convolution with taps reversed and, in each group, inputs and outputs exchanged.
    turned = kernel[::-1].reshape(taps, size, -1, size).transpose(0, 3, 2, 1).reshape(kernel.shape)
    dx = _convolve(precision, (taps - 1) // 2, dy, turned)
    d_kernel = _kernel_gradient(precision, x, dy, kernel)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


grouped_conv.defvjp(_grouped_conv_forward, _grouped_conv_backward)


# Of forms the platform takes one: by measurements on a CPU and an H100. A TPU has the CPU's, unmeasured.


def _convolve(precision: str, left: int, x: Array, kernel: Array) -> Array:
    """`grouped_conv` with so many frames of zeros before the first."""
    return by_platform(_convolve_plainly, _convolve_in_blocks, (precision, left), x, kernel)


def _kernel_gradient(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    """The gradient of `grouped_conv`'s kernel: [taps, D / groups, D], in float32 (or wider)."""
    return by_platform(_kernel_gradient_by_taps, _kernel_gradient_in_blocks, (precision,), x, dy, kernel)


def _pad_time(x: Array, before: int, after: int) -> Array:
    return jnp.pad(x, ((0, 0), (before, after), (0, 0)))


def _convolve_plainly(precision: str, left: int, x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(left, kernel.shape[0] - 1 - left)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1] // kernel.shape[1],
        precision=precision,
    )


TAPS_AT_ONCE = 4  # more make the products larger, but what they read outgrows the cache (trials on a CPU)


def _kernel_gradient_by_taps(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
    """For every few taps, one matrix product a group of the shifted inputs with the output's gradient."""
    taps, size, channels = kernel.shape
    batch, time, _ = x.shape
    steps = -(-taps // TAPS_AT_ONCE)
    # Time comes last, so that shifted inputs are copied in long runs.
    x = _pad_time(x, taps // 2, (taps - 1) // 2 + steps * TAPS_AT_ONCE - taps)
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


# In blocks of frames. A block of outputs is one matrix product, in each group, of all inputs that it sees
# with a Toeplitz matrix of the taps. A part of that matrix is 0, and the inputs of neighbouring blocks
# overlap, but both are small against what one large product gains over many small ones.

BLOCK = 16  # frames: with 128 taps an eighth of the matrix is 0, and every input is there nine times


def _convolve_in_blocks(precision: str, left: int, x: Array, kernel: Array) -> Array:
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


def _kernel_gradient_in_blocks(precision: str, x: Array, dy: Array, kernel: Array) -> Array:
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
    x = _pad_time(x, 0, count * BLOCK - x.shape[1])
    x = x.reshape(len(x), count, BLOCK, -1, size).transpose(3, 0, 1, 2, 4)
    return x.reshape(len(x), -1, BLOCK * size)


def _windows(x: Array, kernel: Array, left: int) -> Array:
    """What each block of outputs sees: [B, T, G * size] -> [G, B * blocks, W * size].

    W is taps + BLOCK, rounded up to blocks. A window begins with the frame that the block's first output
    multiplies with the first tap.
    """
    taps, size, _ = kernel.shape
    blocks, more = -(-x.shape[1] // BLOCK), -(-taps // BLOCK)
    padded = _blocks(_pad_time(x, left, 0), size, blocks + more)
    padded = padded.reshape(len(padded), len(x), blocks + more, -1)
    windows = jnp.concatenate([padded[:, :, i : i + blocks] for i in range(more + 1)], axis=3)
    return windows.reshape(len(windows), len(x) * blocks, -1)


def _toeplitz(kernel: Array) -> Array:
    """[taps, size, G * size] -> [G, W * size, BLOCK * size]: tap w - p for the window's frame w and output p.

    Without a gather, so without a scatter in its transpose: the taps again and again, cut into rows one
    shorter than they are, so that each row begins one place earlier in them.
    """
    taps, size, channels = kernel.shape
    width = (-(-taps // BLOCK) + 1) * BLOCK
    padded = jnp.pad(kernel, ((0, width + 1 - taps), (0, 0), (0, 0)))
    rows = jnp.broadcast_to(padded, (BLOCK, *padded.shape)).reshape(-1, size, channels)
    rows = rows[: BLOCK * width].reshape(BLOCK, width, size, -1, size)  # [p, w, in, G, out]
    return rows.transpose(3, 1, 2, 0, 4).reshape(-1, width * size, BLOCK * size)
