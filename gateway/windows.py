"""Sliding windows: how much of a limit is used, from two counts. Pure: integers, and milliseconds.

Time is cut into buckets as long as the window. What counts is the current bucket and, of the one before, the part
that the window still reaches into, as if it had come evenly: `current + ceil(previous × rest / length)`. So a burst
at the end of a minute is not followed by another at the beginning of the next. `lua/admit.lua` computes the same.
"""

from collections.abc import Sequence

import msgspec

KINDS = 3  # requests, tokens, images: what a window counts
EMPTY = (0,) * 2 * KINDS


class Window(msgspec.Struct, frozen=True):
    """What one kind came to in the current bucket, which began `elapsed_ms` ago, and in the one before."""

    current: int
    previous: int
    elapsed_ms: int
    length_ms: int

    @property
    def used(self) -> int:
        """Return what counts against the limit.

        >>> [Window(2, 10, ms, 60_000).used for ms in (0, 6_000, 30_000, 59_999)]
        [12, 11, 7, 3]
        """
        rest_ms = self.length_ms - self.elapsed_ms
        return self.current - (-self.previous * rest_ms // self.length_ms)

    @property
    def reset_ms(self) -> int:
        """Return how long until nothing is used, if nothing more comes."""
        if self.current:
            return 2 * self.length_ms - self.elapsed_ms
        return self.length_ms - self.elapsed_ms if self.previous else 0

    def wait_ms(self, room: int) -> int:
        """Return how long until no more than `room` (not negative) is used, if nothing more comes.

        >>> Window(0, 10, 0, 60_000).wait_ms(9), Window(10, 0, 10_000, 60_000).wait_ms(9)
        (6000, 56000)
        """
        if self.used <= room:
            return 0
        if self.current <= room:  # once enough of the bucket before has gone by
            free = (room - self.current) * self.length_ms // self.previous
            return self.length_ms - free - self.elapsed_ms
        return 2 * self.length_ms - room * self.length_ms // self.current - self.elapsed_ms


def aged(counts: Sequence[int], buckets: int) -> Sequence[int]:
    """Return the counts of a window (each kind's current one, then each kind's previous one), so much later.

    >>> aged([1, 2, 3, 4, 5, 6], 1)
    [0, 0, 0, 1, 2, 3]
    """
    if buckets <= 0:  # negative if the clock was set back
        return counts
    return [*EMPTY[:KINDS], *(counts[:KINDS] if buckets == 1 else EMPTY[:KINDS])]


def fits(used: int, cost: int, *, share: int, maximum: int) -> bool:
    """Return whether a request of this cost may run now.

    `share` is this process's part of the limit, or all of it. What is larger than a share, but not than the
    limit, runs alone: otherwise it would never run while limits are kept in shares.
    """
    return used + cost <= share or (used == 0 and cost <= maximum)
