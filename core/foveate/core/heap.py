"""How the C allocator of Linux keeps freed memory. On other systems, these functions do nothing."""

import ctypes
import sys
from functools import cache
from typing import Any

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Numbers of options, from glibc's malloc.h."""
MMAP_THRESHOLD = 16 * 2**20
"""Larger blocks come from the system and go back to it as soon as they are freed. glibc would raise this
bound to 32 MiB with the first large block that is freed, and would then keep the pixels of large images.
Blocks of a forward are smaller: they stay in the process, because new pages cost time."""
MAX_ARENAS = 4
"""Heaps that threads share. Each keeps its own free blocks; by default there are eight for each core."""


@cache
def _libc() -> Any:
    """glibc; None on a system without it."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None


def limit_heap() -> None:
    """Keep less freed memory in this process. Call it before threads start."""
    if _libc() is not None:
        _libc().mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        _libc().mallopt(M_ARENA_MAX, MAX_ARENAS)


def trim_heap() -> None:
    """Give freed memory back to the system. Takes milliseconds."""
    if _libc() is not None:
        _libc().malloc_trim(0)
