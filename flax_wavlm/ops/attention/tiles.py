"""The position bias as tiles, which the kernels for GPUs and TPUs read in place of a [T, T] matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def tiles(table: Array, block: int) -> Array:
    """The bias as tiles: [H, 2T - 1] by distance -> [H, 2n - 1, block, block], n = ceil(T / block).

    Tile d belongs to blocks of queries i and of keys j with i - j = d - (n - 1). Its row r and column c
    belong to the distance query - key = (i - j) * block + c - r. There is no gather, and so no scatter in the
    gradient: both are slow.
    """
    heads, distances = table.shape
    time = (distances + 1) // 2
    count = -(-time // block)
    extra = count * block - time
    # By query - key, from 1 - count * block on: windows of two blocks, each a block after the last.
    table = jnp.pad(table[:, ::-1], ((0, 0), (extra, extra + 1))).reshape(heads, 2 * count, block)
    windows = jnp.concatenate([table[:, :-1], table[:, 1:]], axis=2)
    # A window is repeated and cut into rows one shorter than it: each row begins one place earlier in it.
    repeated = jnp.broadcast_to(windows[:, :, None], (heads, 2 * count - 1, block, 2 * block))
    repeated = repeated.reshape(heads, 2 * count - 1, -1)[:, :, : block * (2 * block - 1)]
    return repeated.reshape(heads, 2 * count - 1, block, 2 * block - 1)[:, :, :, block - 1 :]
