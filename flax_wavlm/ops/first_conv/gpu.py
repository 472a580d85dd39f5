"""The first layer of the feature encoder as one Triton kernel, for NVIDIA GPUs.

Its output is the largest array of all, and to make it from one channel is next to nothing. What counts is to
write it once, and never to read it. Letters of shapes: B clips, N samples, T frames, K taps, D.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm.ops.norm.gpu import erf_gelu
from flax_wavlm.ops.partition import shard_batch
from flax_wavlm.ops.triton import Tiles, call, load, store, where

Array = jax.Array

FRAMES = 16  # in a tile: the fewest that a matrix product takes
ROUNDS = 8  # tiles that a program makes one after another, for one reading of the taps
WARPS = 8


def forward(
    stride: int, eps: float, dtype: Any, precision: str, *arrays: Array, interpret: bool = False
) -> tuple[Array, ...]:
    """GELU of the layer norm of a convolution, in float32; the result [B, T, D] in `dtype`.

    Args: audio [B, N], taps [K, D] of its type; in float32 the convolution's bias, the norm's scale and its
        bias [D]. `interpret`: on any platform, for tests.
    """
    function = functools.partial(_forward, stride, eps, jnp.dtype(dtype), precision, interpret)
    return shard_batch(function, whole=(1, 2, 3, 4))(*arrays)


def _forward(
    stride: int, eps: float, dtype: Any, precision: str, interpret: bool, *arrays: Array
) -> tuple[Array]:
    (batch, samples), (count, size) = (array.shape for array in arrays[:2])
    time = (samples - count) // stride + 1
    tiles = Tiles(time, size, pl.next_power_of_2(size), FRAMES)
    vector = pl.BlockSpec((tiles.width,), lambda i, b: (0,))
    result = call(
        interpret,
        functools.partial(_forward_kernel, tiles, stride, eps, precision),
        warps=WARPS,
        grid=(pl.cdiv(tiles.tiles, ROUNDS), batch),
        in_specs=[
            pl.BlockSpec((None, samples), lambda i, b: (b, 0)),
            pl.BlockSpec((count, tiles.width), lambda i, b: (0, 0)),
            *(vector, vector, vector),
        ],
        out_specs=pl.BlockSpec((None, time, tiles.width), lambda i, b: (b, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((batch, time, size), dtype),
        name="conv_norm_gelu",
    )(*arrays)
    return (result,)


def _forward_kernel(
    tiles: Tiles,
    stride: int,
    eps: float,
    precision: str,
    audio_ref,
    taps_ref,
    conv_bias_ref,
    scale_ref,
    bias_ref,
    out_ref,
):
    program, columns, count = pl.program_id(0), tiles.column_mask(), taps_ref.shape[0]
    tap = jnp.arange(max(16, pl.next_power_of_2(count)))  # the fewest that a matrix product takes
    real = tap < count
    all_columns = True if columns is None else columns[None, :]
    taps = plgpu.load(taps_ref.at[pl.ds(0, len(tap)), :], mask=real[:, None] & all_columns, other=0.0)
    conv_bias, scale, bias = (load(ref, columns) for ref in (conv_bias_ref, scale_ref, bias_ref))
    last = max(tiles.total - tiles.rows, 0)

    def step(i: Array, _: None) -> None:
        # The last tile begins early enough to be full. It makes some frames again, and needs no mask.
        first = jnp.minimum((program * ROUNDS + i) * tiles.rows, last)
        frames = first + jnp.arange(tiles.rows)
        there = (frames < tiles.total)[:, None]
        full = columns is None and tiles.total >= tiles.rows
        mask = None if full else there & all_columns
        sample, inside = frames[:, None] * stride + tap[None, :], there & real[None, :]
        audio = plgpu.load(audio_ref.at[sample], mask=inside, other=0.0)  # [frames, taps]
        x = jax.lax.dot(audio, taps, precision=precision, preferred_element_type=jnp.float32) + conv_bias
        normal = tiles.normal(where(mask, x), eps, mask)[0]
        store(out_ref.at[pl.ds(first, tiles.rows), :], erf_gelu(normal * scale + bias), mask)

    jax.lax.fori_loop(0, ROUNDS, step, None)
