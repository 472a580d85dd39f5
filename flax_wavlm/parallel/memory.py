"""The memory of a device: how much there is, what a compiled program needs of it, and what is taken already.

A CPU's device memory is the process's own. There a program shares it with all else that the process holds:
libraries, compiled code, decoded audio that no file backs.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import sys
from typing import Any

import jax

from flax_wavlm.parallel.machine import machine_bytes

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in XLA's message


def on_cpu() -> bool:
    """Whether the devices are the CPU."""
    return jax.local_devices()[0].platform == "cpu"


def device_bytes() -> int:
    """The memory of a device; of a CPU, what the machine or the container gives the process. 0: unknown."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if limit := statistics.get("bytes_limit", 0):
        return int(limit)
    if not on_cpu():
        return 0
    return machine_bytes()


def planned_bytes(plan: Any) -> int:
    """The bytes of a program on a device, by XLA's `CompiledMemoryStats`.

    They are its arguments and results, an array that is both counted once, and the largest amount of
    temporary arrays that live at the same time. What the runtime takes for itself is not among them.
    """
    return int(
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        - plan.alias_size_in_bytes
        + plan.temp_size_in_bytes
        + plan.generated_code_size_in_bytes
    )


def array_bytes(tree: Any) -> int:
    """The bytes of a tree of arrays, or of their shapes with shardings, on one device."""

    def on_one(leaf: Any) -> int:
        return int(leaf.dtype.itemsize) * math.prod(leaf.sharding.shard_shape(leaf.shape))

    return sum(map(on_one, jax.tree.leaves(tree)))


def release_freed() -> None:
    """Gives the system the memory back that the process has freed, where its malloc can (glibc).

    Compiling and writing a checkpoint free hundreds of megabytes that glibc would keep for later.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def smaller(batch_size: int, unit: int) -> list[int]:
    """Smaller multiples of `unit` to try, descending: about 3/4 of the size, 1/2, 3/8, 1/4 and so on."""
    units, size = set(), batch_size / unit
    while size >= 1:
        units |= {int(size * 0.75), int(size * 0.5)}
        size /= 2
    return sorted((number * unit for number in units if number), reverse=True)
