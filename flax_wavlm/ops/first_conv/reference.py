"""TODO."""

from __future__ import annotations

from typing import Any

import jax

from flax_wavlm.ops.norm.api import norm_gelu

Array = jax.Array


def conv_norm_gelu_reference(
    stride: int,
    eps: float,
    dtype: Any,
    precision: str,
    audio: Array,
    taps: Array,
    conv_bias: Array,
    *norm: Array,
) -> tuple[Array]:
    x = jax.lax.conv_general_dilated(
        audio[:, :, None],
        taps[:, None],
        window_strides=(stride,),
        padding="VALID",
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision,
    )
    return (norm_gelu(x + conv_bias.astype(x.dtype), *norm, eps, dtype),)
