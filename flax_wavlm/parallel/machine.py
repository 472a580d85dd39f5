"""The memory of the machine that the process runs on, and what the process holds of it. No jax is needed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CONTAINERS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_bytes() -> int:
    """What the machine or the container gives the process."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in CONTAINERS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text()))
    return min(limits)


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


def in_gb(count: float) -> str:
    """Bytes in GB (10^9), as vendors count a device's memory."""
    return f"{count / 1e9:.3g} GB"


def in_mb(count: float) -> str:
    """Bytes in MB (10^6), for what may be small."""
    return f"{count / 1e6:,.1f} MB"
