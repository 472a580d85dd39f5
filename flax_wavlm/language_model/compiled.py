"""What numba compiles: loops that NumPy has no word for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

VACANT = -1  # a key of a hash table that holds nothing


def compiled(function: Function) -> Function:
    """The function, compiled when it is first called. Other threads go on while it runs.

    The machine code is kept on the disk for the next process, where there is a folder that can be written.
    """
    try:
        return njit(cache=True, nogil=True)(function)  # type: ignore[return-value]  # called as the function is
    except RuntimeError:  # numba found no such folder
        return njit(nogil=True)(function)  # type: ignore[return-value]  # as above


def hash_table(entries: int) -> tuple[np.ndarray, np.ndarray]:
    """The keys, int64, and values, int32, of a table for a number of entries; `slot` finds their places."""
    size = 1 << (2 * entries + 1).bit_length()
    return np.full(size, VACANT, np.int64), np.zeros(size, np.int32)


@compiled
def slot(keys: np.ndarray, key: int) -> Any:
    """Where a key, from 0, is in a hash table, or may be put."""
    mask = len(keys) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)  # 2^64 by the golden ratio, as Knuth has it
    at = np.int64(mixed >> np.uint64(20)) & mask
    while keys[at] != key and keys[at] != VACANT:
        at = (at + 1) & mask
    return at
