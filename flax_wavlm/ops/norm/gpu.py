"""Layer norms as Triton kernels, for NVIDIA GPUs: one pass over memory.

XLA makes three kernels of a norm (mean, variance, the rest), and more of its gradient. Letters of shapes:
N rows (all axes but the last, as one), D.

A tile is some rows, over all of D: padded to a power of two, as Triton wants it, and masked. Means are taken
in two passes over registers. Sums over rows (the gradients of scale and bias) stay in registers while a
program goes through its share of the rows, and are added up behind the kernel. There are no atomics, so every
run gives the same bits.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from flax_wavlm.ops.partition import shard_batch
from flax_wavlm.ops.triton import Tiles, as_rows, call, load, store, where

Array = jax.Array

TILE = 4096  # numbers in a tile, 32 a thread
TILE_BACKWARD = 2048  # smaller, since a program holds up to four tiles and the sums at once
PROGRAMS = 528  # of the backward kernel, at most: 4 on each multiprocessor of an H100, as registers allow


def forward(
    eps: float, dtype: Any, x: Array, *others: Array, gelu: bool = False, interpret: bool = False
) -> tuple[Array, ...]:
    """The norm in `dtype`, or its GELU. With an update first the sum, in the type of x, and then its norm.

    Args:
        x: [..., D].
        others: scale and bias [D]; before them perhaps an update: delta [..., D], perhaps with its bias [D].
        gelu: of the norm.
        interpret: run on any platform, for tests.
    """
    function = functools.partial(_forward, eps, jnp.dtype(dtype), gelu, interpret)
    vectors = [i for i, array in enumerate((x, *others)) if array.ndim == 1]
    return shard_batch(function, whole=vectors)(x, *others)


def backward(
    eps: float,
    types: tuple[Any, ...],
    x: Array,
    scale: Array,
    dy: Array,
    *d_x: Array,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """`flax_wavlm.ops.norm.api.norm_gradient`, with the same arguments.

    `interpret`: run on any platform, for tests.
    """
    row_types = (x.dtype, *map(jnp.dtype, types[:1]))
    kinds = tuple(dict.fromkeys(row_types))  # each is written once
    function = functools.partial(_backward, eps, kinds, 2 + len(types[1:]), interpret)
    *rows, sums = shard_batch(function, whole=(1,), summed=(len(kinds),))(x, scale, dy, *d_x)
    return *(rows[kinds.index(kind)] for kind in row_types), *sums


def forward_gelu(eps: float, dtype: Any, *arrays: Array) -> tuple[Array]:
    """`forward` of x, scale and bias, followed by GELU."""
    (y,) = forward(eps, dtype, *arrays, gelu=True)
    return (y,)


# --- Forward ------------------------------------------------------------------------------------------------


def _forward(
    eps: float, dtype: Any, gelu: bool, interpret: bool, x: Array, *others: Array
) -> tuple[Array, ...]:
    arrays = [as_rows(array) if array.ndim > 1 else array for array in (x, *others)]
    tiles = Tiles.of(x, TILE)
    parts = len(others) - 2  # of an update
    types = [x.dtype, dtype] if parts else [dtype]
    results = call(
        interpret,
        functools.partial(_forward_kernel, tiles, eps, gelu, parts),
        grid=(tiles.tiles,),
        in_specs=[tiles.block if array.ndim > 1 else tiles.vector for array in arrays],
        out_specs=[tiles.block] * len(types),
        out_shape=[jax.ShapeDtypeStruct((tiles.total, tiles.size), kind) for kind in types],
        name="norm_gelu" if gelu else "residual_norm" if parts else "layer_norm",
    )(*arrays)
    return tuple(result.reshape(x.shape) for result in results)


def _forward_kernel(tiles: Tiles, eps: float, gelu: bool, parts: int, x_ref, *refs):
    mask, columns = tiles.mask(pl.program_id(0)), tiles.column_mask()
    update_refs, (scale_ref, bias_ref, *sum_refs, y_ref) = refs[:parts], refs[parts:]
    x = load(x_ref, mask)
    if parts:
        (delta_ref, *delta_bias_refs), (sum_ref,) = update_refs, sum_refs
        x += sum((load(ref, columns) for ref in delta_bias_refs), start=load(delta_ref, mask))
        store(sum_ref, x, mask)
        x = x.astype(sum_ref.dtype).astype(x.dtype)  # the norm is of what is stored
    normal, _ = tiles.normal(x, eps, mask)
    y = normal * load(scale_ref, columns) + load(bias_ref, columns)
    store(y_ref, erf_gelu(y) if gelu else y, mask)


def erf_gelu(x: Array) -> Array:
    """GELU with the error function to 1.5e-7 (Abramowitz & Stegun 1964, formula 7.1.26): Triton has none.

    The formula is that of 1 - erf, which far from 0 keeps its digits: x, or 0, less a correction.
    """
    size = jnp.abs(x)
    t = 1 / (1 + 0.3275911 * math.sqrt(0.5) * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return jnp.maximum(x, 0) - 0.5 * size * series * jnp.exp(-0.5 * x * x)


# --- Backward -----------------------------------------------------------------------------------------------


def _backward(
    eps: float,
    types: tuple[Any, ...],
    vectors: int,
    interpret: bool,
    x: Array,
    scale: Array,
    dy: Array,
    *d_x: Array,
) -> tuple[Array, ...]:
    """The gradient of x in each of the types; those of delta's bias, scale and bias as [vectors, D] float32.

    `vectors`: 3, or 2 where that of delta's bias is not wanted.
    """
    tiles = Tiles.of(x, TILE_BACKWARD)
    programs = min(tiles.tiles, PROGRAMS)
    *rows, sums = call(
        interpret,
        functools.partial(_backward_kernel, tiles, programs, eps, vectors, len(d_x)),
        grid=(programs,),
        in_specs=[tiles.all, tiles.vector, *[tiles.all] * (1 + len(d_x))],
        out_specs=[
            *[tiles.all] * len(types),
            pl.BlockSpec((None, vectors, tiles.width), lambda i: (i, 0, 0)),
        ],
        out_shape=[
            *[jax.ShapeDtypeStruct((tiles.total, tiles.size), kind) for kind in types],
            jax.ShapeDtypeStruct((programs, vectors, tiles.size), jnp.float32),
        ],
        name="residual_norm_backward" if d_x else "layer_norm_backward",
    )(as_rows(x), scale, *map(as_rows, (dy, *d_x)))
    return *(array.reshape(x.shape) for array in rows), jnp.sum(sums, axis=0)


def _backward_kernel(
    tiles: Tiles, programs: int, eps: float, vectors: int, others: int, x_ref, scale_ref, dy_ref, *refs
):
    """A program takes the tiles number `program`, `program + programs`, ..."""
    d_x_refs, dx_refs, sums_ref = refs[:others], refs[others:-1], refs[-1]
    program, columns = pl.program_id(0), tiles.column_mask()
    scale = load(scale_ref, columns)

    def step(i: Array, sums: list[Array]) -> list[Array]:
        tile = program + i * programs
        mask, rows = tiles.mask(tile), pl.ds(tile * tiles.rows, tiles.rows)
        x, dy, *d_x = (load(ref.at[rows, :], mask) for ref in (x_ref, dy_ref, *d_x_refs))
        normal, factor = tiles.normal(x, eps, mask)
        d_normal = dy * scale
        dx = factor * (d_normal - tiles.mean(d_normal) - normal * tiles.mean(d_normal * normal))
        dx = sum(d_x, start=dx)
        for ref in dx_refs:
            store(ref.at[rows, :], dx, mask)
        terms = [where(mask, dx), dy * normal, dy][-vectors:]  # a padded row has no variance
        return [total + jnp.sum(term, axis=0) for total, term in zip(sums, terms, strict=True)]

    start = [jnp.zeros(tiles.width, jnp.float32)] * vectors
    steps = pl.cdiv(tiles.tiles - program, programs)
    for row, total in enumerate(jax.lax.fori_loop(0, steps, step, start)):
        store(sums_ref.at[pl.ds(row, 1), :], total[None], None if columns is None else columns[None])
