"""Layer norms as Triton kernels, for CUDA, each with what stands before or behind it: one pass over memory.

XLA makes three kernels of a norm (mean, variance, the rest), and more of its gradient. ops.py has the
definitions, and says when these run. Letters of shapes: N rows (all axes but the last, as one), D.

A tile is some rows, over all of D: padded to a power of two, as Triton wants it, and masked. Means are in two
passes over registers. Sums over rows (the gradients of scale and bias) stay in registers while a program goes
through its share of the rows, and are added up behind the kernel: no atomics, the same bits in every run.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from flax_wavlm import sharding

Array = jax.Array

TILE = 4096  # numbers in a tile, 32 a thread
TILE_BACKWARD = 2048  # which holds up to four tiles and the sums at once
WARPS = 4
PROGRAMS = 528  # of the backward kernel, at most: 4 on each multiprocessor of an H100, as registers allow


def forward(
    eps: float, dtype: Any, x: Array, *others: Array, gelu: bool = False, interpret: bool = False
) -> tuple[Array, ...]:
    """The norm in `dtype`, or GELU of it; with a delta x + (delta + its bias) in the type of x, and its norm.

    Args: x [..., D]; `others`: perhaps delta [..., D], perhaps with a bias [D], then scale and bias [D].
        `interpret`: on any platform, for tests.
    """
    function = functools.partial(_forward, eps, jnp.dtype(dtype), gelu, interpret)
    vectors = [i for i, array in enumerate((x, *others)) if array.ndim == 1]
    return sharding.by_rows(function, whole=vectors)(x, *others)


def backward(
    eps: float,
    types: tuple[Any, ...],
    x: Array,
    scale: Array,
    dy: Array,
    *d_x: Array,
    interpret: bool = False,
) -> tuple[Array, ...]:
    """The gradients of x, of the parts of a branch in it, of scale and of bias.

    Args: `types`: those of the parts: none, delta's, or delta's and its bias's; x [..., D] of which the norm
        is, scale [D], dy [..., D]; `d_x`: what comes to x from elsewhere [..., D], or nothing.
    """
    row_types = (x.dtype, *map(jnp.dtype, types[:1]))
    kinds = tuple(dict.fromkeys(row_types))  # each is written once
    function = functools.partial(_backward, eps, kinds, 2 + len(types[1:]), interpret)
    *rows, sums = sharding.by_rows(function, whole=(1,), summed=(len(kinds),))(x, scale, dy, *d_x)
    return *(rows[kinds.index(kind)] for kind in row_types), *sums


class _Tiles(NamedTuple):
    """How N rows of D are cut."""

    total: int  # N
    size: int  # D
    width: int  # D, padded
    rows: int  # of a tile

    @classmethod
    def of(cls, x: Array, numbers: int) -> _Tiles:
        """Tiles of about so many numbers."""
        *rows, size = x.shape
        width = pl.next_power_of_2(size)
        return cls(math.prod(rows), size, width, max(1, numbers // width))

    @property
    def tiles(self) -> int:
        return pl.cdiv(self.total, self.rows)

    @property
    def block(self) -> pl.BlockSpec:
        """A tile for each program."""
        return pl.BlockSpec((self.rows, self.width), lambda i: (i, 0))

    @property
    def all(self) -> pl.BlockSpec:
        """All tiles for each program."""
        return pl.BlockSpec((self.rows * self.tiles, self.width), lambda i: (0, 0))

    @property
    def vector(self) -> pl.BlockSpec:
        """All of a vector [D] for each program."""
        return pl.BlockSpec((self.width,), lambda i: (0,))

    def mask(self, tile: Any) -> Array | None:
        """[rows, width]: what is there of a tile. None: all of every one."""
        if self.size == self.width and self.total % self.rows == 0:
            return None
        row, column = (jax.lax.broadcasted_iota(jnp.int32, (self.rows, self.width), axis) for axis in (0, 1))
        return (tile * self.rows + row < self.total) & (column < self.size)

    def column_mask(self) -> Array | None:
        return None if self.size == self.width else jnp.arange(self.width) < self.size

    def mean(self, x: Array) -> Array:
        """Along D, of what is 0 in the padding."""
        return jnp.sum(x, axis=1, keepdims=True) / self.size

    def normal(self, x: Array, eps: float, mask: Array | None) -> tuple[Array, Array]:
        """x with mean 0 and variance 1, and one over its deviation; as in ops.py, but 0 in the padding."""
        x = _where(mask, x - self.mean(x))
        factor = jax.lax.rsqrt(self.mean(jnp.square(x)) + eps)
        return _where(mask, x * factor), factor  # a padded row has no variance


def _where(mask: Array | None, x: Array) -> Array:
    return x if mask is None else jnp.where(mask, x, 0.0)


def load(ref: Any, mask: Array | None) -> Array:
    """In float32, 0 where masked."""
    x = plgpu.load(ref, mask=mask, other=None if mask is None else jnp.zeros((), ref.dtype))
    return x.astype(jnp.float32)


def store(ref: Any, x: Array, mask: Array | None) -> None:
    plgpu.store(ref, x.astype(ref.dtype), mask=mask)


def call(interpret: bool, kernel: Any, *, warps: int = WARPS, **how: Any) -> Any:
    params = plgpu.CompilerParams(num_warps=warps, num_stages=1)
    return pl.pallas_call(kernel, compiler_params=params, interpret=interpret, **how)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


# --- Forward ------------------------------------------------------------------------------------------------


def _forward(
    eps: float, dtype: Any, gelu: bool, interpret: bool, x: Array, *others: Array
) -> tuple[Array, ...]:
    arrays = [_rows(array) if array.ndim > 1 else array for array in (x, *others)]
    tiles = _Tiles.of(x, TILE)
    parts = len(others) - 2  # of a branch
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


def _forward_kernel(tiles: _Tiles, eps: float, gelu: bool, parts: int, x_ref, *refs):
    mask, columns = tiles.mask(pl.program_id(0)), tiles.column_mask()
    branch_refs, (scale_ref, bias_ref, *sum_refs, y_ref) = refs[:parts], refs[parts:]
    x = load(x_ref, mask)
    if parts:
        (delta_ref, *delta_bias_refs), (sum_ref,) = branch_refs, sum_refs
        x += sum((load(ref, columns) for ref in delta_bias_refs), start=load(delta_ref, mask))
        store(sum_ref, x, mask)
        x = x.astype(sum_ref.dtype).astype(x.dtype)  # the norm is that of what is stored
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


# --- Of a convolution of one channel ------------------------------------------------------------------------

# The first layer of the feature encoder: its output is the largest array of all, and to make it from one
# channel is next to nothing. What counts is to write it once, and never to read it. Letters of shapes here:
# B clips, N samples, T frames, K taps, D.

FRAMES = 16  # at once: as few as a matrix product takes
ROUNDS = 8  # of so many frames in a program, which reads the taps once
WARPS_CONV = 8


def conv_gelu(
    stride: int, eps: float, dtype: Any, precision: str, *arrays: Array, interpret: bool = False
) -> tuple[Array, ...]:
    """GELU of the layer norm of a convolution, in float32; the result [B, T, D] in `dtype`.

    Args: audio [B, N], taps [K, D] of its type; in float32 the convolution's bias, the norm's scale and its
        bias [D]. `interpret`: on any platform, for tests.
    """
    function = functools.partial(_conv_gelu, stride, eps, jnp.dtype(dtype), precision, interpret)
    return sharding.by_rows(function, whole=(1, 2, 3, 4))(*arrays)


def _conv_gelu(
    stride: int, eps: float, dtype: Any, precision: str, interpret: bool, *arrays: Array
) -> tuple[Array]:
    (batch, samples), (count, size) = (array.shape for array in arrays[:2])
    time = (samples - count) // stride + 1
    tiles = _Tiles(time, size, pl.next_power_of_2(size), FRAMES)
    vector = pl.BlockSpec((tiles.width,), lambda i, b: (0,))
    result = call(
        interpret,
        functools.partial(_conv_gelu_kernel, tiles, stride, eps, precision),
        warps=WARPS_CONV,
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


def _conv_gelu_kernel(
    tiles: _Tiles,
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
    tap = jnp.arange(max(16, pl.next_power_of_2(count)))  # as many as a matrix product takes
    real = tap < count
    all_columns = True if columns is None else columns[None, :]
    taps = plgpu.load(taps_ref.at[pl.ds(0, len(tap)), :], mask=real[:, None] & all_columns, other=0.0)
    conv_bias, scale, bias = (load(ref, columns) for ref in (conv_bias_ref, scale_ref, bias_ref))
    last = max(tiles.total - tiles.rows, 0)

    def step(i: Array, _: None) -> None:
        # The last tile begins early enough to be full, and makes some frames again: no mask.
        first = jnp.minimum((program * ROUNDS + i) * tiles.rows, last)
        frames = first + jnp.arange(tiles.rows)
        there = (frames < tiles.total)[:, None]
        full = columns is None and tiles.total >= tiles.rows
        mask = None if full else there & all_columns
        sample, inside = frames[:, None] * stride + tap[None, :], there & real[None, :]
        audio = plgpu.load(audio_ref.at[sample], mask=inside, other=0.0)  # [frames, taps]
        x = jax.lax.dot(audio, taps, precision=precision, preferred_element_type=jnp.float32) + conv_bias
        normal = tiles.normal(_where(mask, x), eps, mask)[0]
        store(out_ref.at[pl.ds(first, tiles.rows), :], erf_gelu(normal * scale + bias), mask)

    jax.lax.fori_loop(0, ROUNDS, step, None)


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
    tiles = _Tiles.of(x, TILE_BACKWARD)
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
    )(_rows(x), scale, *map(_rows, (dy, *d_x)))
    return *(array.reshape(x.shape) for array in rows), jnp.sum(sums, axis=0)


def _backward_kernel(
    tiles: _Tiles, programs: int, eps: float, vectors: int, others: int, x_ref, scale_ref, dy_ref, *refs
):
    """A program has every so manieth tile."""
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
        terms = [_where(mask, dx), dy * normal, dy][-vectors:]  # a padded row has no variance
        return [total + jnp.sum(term, axis=0) for total, term in zip(sums, terms, strict=True)]

    start = [jnp.zeros(tiles.width, jnp.float32)] * vectors
    steps = pl.cdiv(tiles.tiles - program, programs)
    for row, total in enumerate(jax.lax.fori_loop(0, steps, step, start)):
        store(sums_ref.at[pl.ds(row, 1), :], total[None], None if columns is None else columns[None])
