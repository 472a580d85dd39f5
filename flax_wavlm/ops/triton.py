"""What our Triton kernels share: how rows are cut into tiles, loads and stores with a mask, the call."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

Array = jax.Array

WARPS = 4


class Tiles(NamedTuple):
    """How N rows of D are cut into tiles."""

    total: int  # N
    size: int  # D
    width: int  # D, padded
    rows: int  # of a tile

    @classmethod
    def of(cls, x: Array, numbers: int) -> Tiles:
        """Tiles of about that many numbers."""
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
        """[rows, width]: which places of a tile the array has; None: all, in every tile."""
        if self.size == self.width and self.total % self.rows == 0:
            return None
        row, column = (jax.lax.broadcasted_iota(jnp.int32, (self.rows, self.width), axis) for axis in (0, 1))
        return (tile * self.rows + row < self.total) & (column < self.size)

    def column_mask(self) -> Array | None:
        """[width]: which columns the array has; None for all."""
        return None if self.size == self.width else jnp.arange(self.width) < self.size

    def mean(self, x: Array) -> Array:
        """Along D; x must be 0 in the padding."""
        return jnp.sum(x, axis=1, keepdims=True) / self.size

    def normal(self, x: Array, eps: float, mask: Array | None) -> tuple[Array, Array]:
        """As `flax_wavlm.ops.norm.reference.standardise`, but 0 in the padding."""
        x = where(mask, x - self.mean(x))
        factor = jax.lax.rsqrt(self.mean(jnp.square(x)) + eps)
        return where(mask, x * factor), factor  # a padded row has no variance


def where(mask: Array | None, x: Array) -> Array:
    """x where there is something, 0 elsewhere."""
    return x if mask is None else jnp.where(mask, x, 0.0)


def load(ref: Any, mask: Array | None) -> Array:
    """A tile in float32, 0 where masked."""
    x = plgpu.load(ref, mask=mask, other=None if mask is None else jnp.zeros((), ref.dtype))
    return x.astype(jnp.float32)


def store(ref: Any, x: Array, mask: Array | None) -> None:
    """Stores a tile in the type of the array."""
    plgpu.store(ref, x.astype(ref.dtype), mask=mask)


def call(interpret: bool, kernel: Any, *, warps: int = WARPS, **how: Any) -> Any:
    """`pl.pallas_call` for Triton; `interpret` runs the kernel on any platform, for tests."""
    params = plgpu.CompilerParams(num_warps=warps, num_stages=1)
    return pl.pallas_call(kernel, compiler_params=params, interpret=interpret, **how)


def as_rows(x: Array) -> Array:
    """[..., D] -> [N, D]."""
    return x.reshape(-1, x.shape[-1])
