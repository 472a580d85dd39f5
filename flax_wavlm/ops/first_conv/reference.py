"""The first layer of the feature encoder: a convolution of one channel, layer norm, GELU."""

from __future__ import annotations

from typing import Any

import jax

from flax_wavlm.ops.norm import reference as norm_reference

Array = jax.Array


def convolution(audio: Array, taps: Array, bias: Array, stride: int, precision: str) -> Array:
    """[B, N], [K, D] and [D] to [B, T, D], in the type of the audio, without padding."""
    x = jax.lax.conv_general_dilated(
        audio[:, :, None],
        taps[:, None],
        window_strides=(stride,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision,
    )
    return x + bias.astype(x.dtype)


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
    """See `flax_wavlm.ops.first_conv.api.conv_norm_gelu`."""
    x = convolution(audio, taps, conv_bias, stride, precision)
    return norm_reference.norm_gelu(x, scale, bias, eps, dtype)
