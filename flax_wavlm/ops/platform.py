"""TODO."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array


def by_platform(plainly: Any, on_cuda: Any, settings: tuple[Any, ...], *arrays: Array) -> Any:
    """Which of two forms is taken, by the platform compiled for: the only such place."""
    plainly, on_cuda = (functools.partial(form, *settings) for form in (plainly, on_cuda))
    return jax.lax.platform_dependent(*arrays, cuda=on_cuda, default=plainly)


def fused_by_platform(plainly: Any, fused: Any, settings: tuple[Any, ...], *arrays: Array) -> Any:
    """`by_platform` for a kernel through the first array's rows: without any, or in float64, plainly."""
    x, *others = arrays
    if x.ndim < 2 or x.size == 0 or any(array.dtype == jnp.float64 for array in (x, *others)):
        return plainly(*settings, *arrays)

    @jax.custom_batching.custom_vmap
    def either(*arrays: Array) -> tuple[Array, ...]:
        return by_platform(plainly, fused, settings, *arrays)

    @either.def_vmap
    def vmapped(size: int, batched: list[bool], *arrays: Array) -> tuple[tuple[Array, ...], tuple[bool, ...]]:
        """In plain operations: JAX has no batches of what is partitioned by hand."""
        axes = [0 if axis else None for axis in batched]
        results = jax.vmap(functools.partial(plainly, *settings), in_axes=axes)(*arrays)
        return results, (True,) * len(results)

    return either(*arrays)
