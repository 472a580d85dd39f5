"""The memory of a device: how much there is, what a compiled program needs of it, and what is taken already.

A CPU's device memory is the process's own. There a program shares it with all else that the process holds:
libraries, compiled code, decoded audio that no file backs.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from pathlib import Path
from typing import Any

import jax

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in XLA's message
CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


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
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits)


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


def held_bytes() -> int:
    """Bytes of memory that the process holds for itself; 0 where the system does not say.

    What is mapped from files, such as decoded audio in its cache, is not counted: the system takes that back
    when memory is short.
    """
    sizes = _status()
    return sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0)


def _status() -> dict[str, int]:
    """The process's sizes in bytes, by the names of /proc/self/status; {} where there is no such file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return {}
    sizes = (line.partition(":") for line in status.splitlines() if line.endswith(" kB"))
    return {name: int(size.split()[0]) * 1024 for name, _, size in sizes}


def release_freed() -> None:
    """Gives the system the memory back that the process has freed, where its malloc can (glibc).

    Compiling and writing a checkpoint free hundreds of megabytes that glibc would keep for later.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def in_gb(count: float) -> str:
    """Bytes in GB (10^9), as vendors count a device's memory."""
    return f"{count / 1e9:.3g} GB"


def smaller(batch_size: int, unit: int) -> list[int]:
    """Smaller multiples of `unit` to try, descending: about 3/4 of the size, 1/2, 3/8, 1/4 and so on."""
    units, size = set(), batch_size / unit
    while size >= 1:
        units |= {int(size * 0.75), int(size * 0.5)}
        size /= 2
    return sorted((number * unit for number in units if number), reverse=True)
