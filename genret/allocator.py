"""What the C library does with the memory of a process that computes with torch on a CPU."""

import ctypes
from functools import cache

# Parameters of glibc's `mallopt` and their values: https://man7.org/linux/man-pages/man3/mallopt.3.html.
_TRIM_THRESHOLD, _NEVER = -1, -1
_MMAP_THRESHOLD, _LARGEST = -3, 1 << 30


@cache
def keep_freed_memory() -> bool:
    """Have this process keep what it frees for what it asks for next, instead of giving it back to the kernel.

    A step of training or of decoding asks for the same buffers again and again. By its defaults glibc maps the large
    ones anew each time and trims the others off, and the kernel clears every page once more. It is so for the whole
    process, other libraries in it included, which stays as large as it once was.

    Returns:
        Whether the C library knows how; others than glibc are left as they are.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(_TRIM_THRESHOLD, _NEVER) and library.mallopt(_MMAP_THRESHOLD, _LARGEST))
