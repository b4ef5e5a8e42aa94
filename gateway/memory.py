"""What a gateway process does about its memory, so that neither the allocator nor the collector costs requests."""

import ctypes
import gc

# glibc's mallopt(3). Left to itself malloc gives freed megabytes back to the kernel at once, and the page faults of
# getting them again are half of what an image costs.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES_MAX = 128 * 2**20
MAPPED_BYTES_MIN = 32 * 2**20
# A request makes a few hundred objects and next to no cycles.
COLLECT_AFTER_OBJECTS = 20_000


def keep_freed() -> None:
    """Let this process, and those it forks, keep up to KEPT_BYTES_MAX of what they freed; without glibc, do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)


def freeze_loaded() -> None:
    """Take what was loaded at start out of the collector's sight, and let it look less often.

    At Python's own threshold of 700 objects the collector takes a tenth of the process's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 10, 10)
