"""WavLM's positional convolution: over time, in groups, with as many frames out as in."""

from __future__ import annotations

import jax

Array = jax.Array


def grouped_conv(x: Array, kernel: Array, precision: str = "highest") -> Array:
    """See `flax_wavlm.ops.positional_conv.api.grouped_conv`."""
    return convolve(precision, kernel.shape[0] // 2, x, kernel)


def convolve(precision: str, left: int, x: Array, kernel: Array) -> Array:
    """`grouped_conv` with `left` frames of zeros before the first."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(left, kernel.shape[0] - 1 - left)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=x.shape[-1] // kernel.shape[1],
        precision=precision,
    )
