"""Large pages of memory for a process that computes on a CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

SETTING = "FLAX_WAVLM_HUGE_PAGES"
_OFFER = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts this process again, in its place, with large pages for large arrays.

    XLA's CPU backend allocates its temporary arrays anew at every step. Where the kernel hands them out in
    pages of 4 kB, touching them costs a large part of a small model's step; with pages of 2 MB it does not.
    The demo trains 1.2 to 1.7 times as fast (90 steps on 2 cores shared with other work, three pairs in
    turns). glibc takes this setting, `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, only when a process starts.
    The exported weights are the same to the last bit.

    Nothing happens where FLAX_WAVLM_HUGE_PAGES is 0, where the kernel does not leave the choice to programs
    ("madvise"), where GLIBC_TUNABLES is set already, or where jax has been imported: then the process
    already holds work that must not be lost.
    """
    if os.environ.get(SETTING) == "0" or "GLIBC_TUNABLES" in os.environ or "jax" in sys.modules:
        return
    if not _OFFER.exists() or "[madvise]" not in _OFFER.read_text():
        return
    sys.stdout.flush()
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    os.execve(sys.executable, sys.orig_argv, os.environ | tunables)
