"""The first layer of the feature encoder as one operation, since what is between its parts is the largest
array of all.

Formula: GELU(layer norm(convolution of one channel + its bias)).
Residuals: the arguments alone. The convolution's output, many times larger, is made again.
Implementations: plain jnp, and a kernel for NVIDIA GPUs in `gpu.py`.
"""

from __future__ import annotations

from typing import Any

import jax

from flax_wavlm.ops import platform
from flax_wavlm.ops.first_conv import reference
from flax_wavlm.ops.norm.api import norm_gelu

Array = jax.Array

_GPU_FORWARD = platform.GpuKernel("flax_wavlm.ops.first_conv.gpu", "forward")


def _conv_norm_gelu(*arguments: Any) -> Array:
    arrays, settings = arguments[:5], arguments[5:]

    def plain(*arguments: Any) -> tuple[Array]:
        return (reference.conv_norm_gelu(*arguments[4:], *arguments[:4]),)

    (y,) = platform.rows_by_platform(plain, _GPU_FORWARD, settings, *arrays)
    return y


def _forward(*arguments: Any) -> tuple[Array, tuple[Array, ...]]:
    return _conv_norm_gelu(*arguments), arguments[:5]


def _backward(
    stride: int, eps: float, dtype: Any, precision: str, residuals: tuple[Array, ...], dy: Array
) -> tuple[Array, ...]:
    def plain(audio: Array, taps: Array, conv_bias: Array, scale: Array, bias: Array) -> Array:
        x = reference.convolution(audio, taps, conv_bias, stride, precision)
        return norm_gelu(x, scale, bias, eps, dtype)

    return jax.vjp(plain, *residuals)[1](dy)


@platform.operation(reference.conv_norm_gelu, forward=_forward, backward=_backward, static=(5, 6, 7, 8))
def conv_norm_gelu(
    audio: Array,
    taps: Array,
    conv_bias: Array,
    scale: Array,
    bias: Array,
    stride: int,
    eps: float,
    dtype: Any,
    precision: str = "highest",
) -> Array:
    """`flax_wavlm.ops.norm.api.norm_gelu` of a convolution of one channel, without padding.

    Args: audio [B, N]; taps [K, D] in its type; in float32 the convolution's bias, the norm's scale and its
        bias [D]; `precision` is that of float32 products.
    Returns: [B, T, D] in `dtype`, with T = (N - K) // stride + 1.
    """
    return _conv_norm_gelu(audio, taps, conv_bias, scale, bias, stride, eps, dtype, precision)
