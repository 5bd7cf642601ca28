"""What the process does with memory that is let go of."""

import ctypes
import platform

# mallopt's: how many blocks may be mapped by themselves, and how much free memory at the end is handed back.
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep memory for the next batch rather than hand it back: glibc's allocator; elsewhere nothing is changed.

    By default each large buffer is mapped anew, and the system clears it page by page as it is written: of the
    classification pipeline (3.1), which makes and drops 3 MB of crops for each image, that took two fifths of the time.
    The process then stays as large as it once was.

    Returns:
        Whether it was changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER))
