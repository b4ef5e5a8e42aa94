"""How much of the machine the demo's models take."""

import os

THREADS_MAX = 4


def threads() -> int:
    """Half of the cores, for the gateway and its stores run beside.

    On two busy cores, two threads that wait for each other were ten times slower than one.
    """
    return min(max(1, (os.cpu_count() or 1) // 2), THREADS_MAX)
