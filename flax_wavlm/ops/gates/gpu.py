"""The gradient of attention's gates as a Triton kernel, for NVIDIA GPUs: one pass over memory.

XLA makes ten kernels of it. Letters of shapes: B clips, T frames, H heads, K head size.

A tile is some frames of a clip, over all of K: padded to a power of two, and masked. A program goes through
its share of a head's tiles. Sums over frames stay in registers until its end, and are added up behind the
kernel, as in `flax_wavlm.ops.norm.gpu`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from flax_wavlm.ops.partition import shard_batch
from flax_wavlm.ops.triton import call, load, store

Array = jax.Array

TILE = 2048  # numbers in a tile, 16 a thread; a program holds four tiles at once
PROGRAMS = 528  # at most, about: 4 on each multiprocessor of an H100


def backward(
    x: Array, kernel: Array, d_x: Array, d_gate: Array, *slopes: Array, interpret: bool = False
) -> tuple[Array, ...]:
    """`flax_wavlm.ops.gates.api.gates_gradient`, with the same arrays.

    `interpret`: run on any platform, for tests.
    """
    function = shard_batch(functools.partial(_backward, interpret), whole=(1,), summed=(1,))
    dx, sums = function(x, kernel, d_x, d_gate, *slopes)
    total = jnp.sum(sums, axis=0)
    return dx, total[:2, : len(kernel)].T, total[2, :2], sums[:, 2, 2]


class _Tiles(NamedTuple):
    """How a head's B clips of T frames are cut."""

    clips: int
    time: int
    size: int  # K
    width: int  # K, padded
    rows: int  # frames of a tile

    @classmethod
    def of(cls, x: Array) -> _Tiles:
        clips, time, _, size = x.shape
        width = max(pl.next_power_of_2(size), 4)  # at least 3, for three of the sums
        return cls(clips, time, size, width, max(1, TILE // width))

    @property
    def in_clip(self) -> int:
        return pl.cdiv(self.time, self.rows)

    @property
    def vectors(self) -> pl.BlockSpec:
        """All of a head's frames, [B, T, K]."""
        return pl.BlockSpec(
            (self.clips, self.in_clip * self.rows, None, self.width), lambda h, i: (0, 0, h, 0)
        )

    @property
    def scalars(self) -> pl.BlockSpec:
        """A number for each of them, [B, T]."""
        return pl.BlockSpec((self.clips, None, self.in_clip * self.rows), lambda h, i: (0, h, 0))


def _backward(
    interpret: bool, x: Array, kernel: Array, d_x: Array, d_gate: Array, *slopes: Array
) -> tuple[Array, Array]:
    """The gradient of x, and of each head three rows of sums [H, 3, width] float32.

    Those are the gradients of the kernel's two sums, and in one row of the bias's two and of const.
    """
    tiles, heads = _Tiles.of(x), x.shape[2]
    programs = min(tiles.clips * tiles.in_clip, pl.cdiv(PROGRAMS, heads))
    whole_kernel = pl.BlockSpec((tiles.width, 8), lambda h, i: (0, 0))
    dx, sums = call(
        interpret,
        functools.partial(_backward_kernel, tiles, programs),
        grid=(heads, programs),
        in_specs=[tiles.vectors, whole_kernel, tiles.vectors, *[tiles.scalars] * 4],
        out_specs=[tiles.vectors, pl.BlockSpec((None, None, 3, tiles.width), lambda h, i: (i, h, 0, 0))],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((programs, heads, 3, tiles.width), jnp.float32),
        ],
        name="gates_backward",
    )(x, kernel, d_x, d_gate, *slopes)
    return dx, jnp.sum(sums, axis=0)


def _backward_kernel(
    tiles: _Tiles, programs: int, x_ref, kernel_ref, d_x_ref, d_gate_ref, *refs
):  # three slopes, and the two results
    """A program takes the tiles number `program`, `program + programs`, ... of its head."""
    *slope_refs, dx_ref, sums_ref = refs
    program, column = pl.program_id(1), jnp.arange(tiles.width)
    columns, first_sum = column < tiles.size, jnp.arange(8) < 4
    kernel = load(kernel_ref, jnp.broadcast_to(columns[:, None], (tiles.width, 8)))
    weights = [jnp.sum(jnp.where(half, kernel, 0.0), axis=1) for half in (first_sum, ~first_sum)]

    def step(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
        tile = program + i * programs
        clip, first = jax.lax.div(tile, tiles.in_clip), jax.lax.rem(tile, tiles.in_clip) * tiles.rows
        frames, rows = pl.ds(first, tiles.rows), first + jnp.arange(tiles.rows) < tiles.time
        mask = rows[:, None] & columns[None, :]
        x, dx = (load(ref.at[clip, frames, :], mask) for ref in (x_ref, d_x_ref))
        d_gate, *slopes = (load(ref.at[clip, frames], rows) for ref in (d_gate_ref, *slope_refs))
        d_a, d_b, d_const = (d_gate * slope for slope in slopes)
        for d_sum, weight in zip((d_a, d_b), weights, strict=True):
            dx = dx + d_sum[:, None] * weight[None, :]
        store(dx_ref.at[clip, frames, :], dx, mask)
        return tuple(map(jnp.add, sums, (d_a[:, None] * x, d_b[:, None] * x, d_a, d_b, d_const)))

    steps = pl.cdiv(tiles.clips * tiles.in_clip - program, programs)
    shapes = [(tiles.rows, tiles.width)] * 2 + [(tiles.rows,)] * 3
    start = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    sums = [jnp.sum(total, axis=0) for total in jax.lax.fori_loop(0, steps, step, start)]
    last = jnp.zeros(tiles.width, jnp.float32)
    for i, total in enumerate(sums[2:]):
        last = jnp.where(column == i, total, last)
    for row, total in enumerate((*sums[:2], last)):
        store(sums_ref.at[pl.ds(row, 1), :], total[None], None)
