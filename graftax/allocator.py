"""Working memory on a CPU: what one step has freed is kept for the next, in place of going back to the system.

glibc gives every large block back at once, and the system hands out fresh, zeroed pages for the next one: at every step of a
training a fifth of the time goes there. XLA takes such a block for its temporary arrays whenever a program runs.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import platform

from graftax.platforms import only_cpu

_SETTINGS = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
"""Of glibc's `mallopt` (malloc.h): one heap for all threads, no block outside of it, none of it given back."""


@functools.cache
def keep_pages() -> bool:
    """Have the C library keep what is freed, where the C library is glibc and jax will use the CPU alone.

    To be called before jax makes its threads; later it changes nothing for the better. The process then holds on to as much
    memory as it once used. Returns whether it was done.
    """
    if platform.libc_ver()[0] != "glibc" or not only_cpu():
        return False
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        return all([mallopt(number, value) for number, value in _SETTINGS.values()])
    return False
