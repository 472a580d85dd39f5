"""TODO."""

from __future__ import annotations

import functools
from typing import Any

import jax

from flax_wavlm.ops.first_conv import gpu
from flax_wavlm.ops.first_conv.reference import conv_norm_gelu_reference
from flax_wavlm.ops.platform import fused_by_platform

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7, 8))
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
    """`norm_gelu` of a convolution of one channel, without padding: [B, N], [K, D] and [D] to [B, T, D].

    Keeps what comes in alone: what the convolution makes of it is many times larger.
    """
    settings = stride, eps, dtype, precision
    arrays = audio, taps, conv_bias, scale, bias
    (y,) = fused_by_platform(conv_norm_gelu_reference, gpu.conv_gelu, settings, *arrays)
    return y


def _conv_norm_gelu_backward(
    stride: int, eps: float, dtype: Any, precision: str, saved: tuple[Array, ...], dy: Array
) -> tuple[Array, ...]:
    plainly = functools.partial(conv_norm_gelu_reference, stride, eps, dtype, precision)
    return jax.vjp(plainly, *saved)[1]((dy,))


conv_norm_gelu.defvjp(
    lambda *arguments: (conv_norm_gelu(*arguments), arguments[:5]), _conv_norm_gelu_backward
)
