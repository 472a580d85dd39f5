"""Permissions of files, which tests must obey even as root."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """root may read every file: takes that right (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) away for a while."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] = effective & ~(1 << 1 | 1 << 2)
    assert libc.capset(header, sets) == 0
    try:
        yield
    finally:
        sets[0] = effective
        assert libc.capset(header, sets) == 0
