"""WavLM's positional convolution, with a gradient that is fast for its many taps and groups.

Formula: a convolution over time in groups, "same" padding, stride 1, no bias. Residuals: x and the kernel.
Implementations: `lax.conv` and a gradient by `taps.py` on CPUs; `blocks.py` on NVIDIA GPUs. Measured on a CPU
and on an H100; a TPU takes the CPU's forms, which are plain operations of XLA.
"""

from __future__ import annotations

import jax

from flax_wavlm.ops.platform import by_platform, operation
from flax_wavlm.ops.positional_conv import blocks, reference, taps

Array = jax.Array


def _convolve(precision: str, left: int, x: Array, kernel: Array) -> Array:
    return by_platform(reference.convolve, blocks.convolve, (precision, left), x, kernel)


def _forward(x: Array, kernel: Array, precision: str) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(precision, len(kernel) // 2, x, kernel), (x, kernel)


def _backward(precision: str, residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    count, size, _ = kernel.shape
    # dx is the same convolution with the taps reversed and, in each group, inputs and outputs exchanged.
    turned = kernel[::-1].reshape(count, size, -1, size).transpose(0, 3, 2, 1).reshape(kernel.shape)
    dx = _convolve(precision, (count - 1) // 2, dy, turned)
    d_kernel = by_platform(taps.kernel_gradient, blocks.kernel_gradient, (precision,), x, dy, kernel)
    return dx.astype(x.dtype), d_kernel.astype(kernel.dtype)


@operation(reference.grouped_conv, forward=_forward, backward=_backward, static=(2,))
def grouped_conv(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """Convolution over time in groups, "same" padding, stride 1, no bias.

    With WavLM's 128 taps and 16 groups, XLA's code for the automatic gradient is many times slower than
    torch's on a CPU, and so is its convolution on a GPU.

    Args: x [B, T, D], kernel [taps, D / groups, D]; `precision` is that of float32 products.
    Returns: [B, T, D]. An even kernel has its extra zero on the left, as `WavLMSamePadLayer` has it.
    """
    return _convolve(precision, len(kernel) // 2, x, kernel)
