"""Keeps children up and takes them down, in the order in which they depend on each other."""

import signal
import time
from collections import deque
from collections.abc import Sequence
from types import FrameType

from demo import terminal
from demo.child import Cancelled, Child, Predicate, StartFailed, ending
from demo.terminal import FAILED

WATCH_S = 0.2
RESTARTS_MAX = 5
RESTARTS_WINDOW_S = 60.0
RESTART_PAUSE_S = 0.5


class Signals:
    """Counts Ctrl-C, SIGTERM and SIGHUP from now on: once is please, twice is at once."""

    def __init__(self) -> None:
        self.count = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._receive)

    def stopping(self) -> bool:
        return self.count > 0

    def hurried(self) -> bool:
        return self.count > 1

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1  # a lock taken here could be one that we hold already


class Supervisor:
    """Children in the order in which they are needed: what comes later needs what comes before."""

    def __init__(self, children: Sequence[Child]) -> None:
        self.children = children
        self._restarts: dict[str, deque[float]] = {
            child.name: deque(maxlen=RESTARTS_MAX) for child in children
        }

    def stop_leftovers(self) -> dict[str, int]:
        """Stop what a killed earlier run left running; return names with their pids."""
        left = {child.name: child.stop_leftover() for child in reversed(self.children)}
        return {name: pid for name, pid in left.items() if pid is not None}

    def watch(self, cancelled: Predicate) -> None:
        """Restart what dies until cancelled. Raise StartFailed if a child keeps dying."""
        while not cancelled():
            for child in self.children:
                if not child.is_alive() and not cancelled():
                    self._restart(child, cancelled)
            time.sleep(WATCH_S)

    def stop(self, hurried: Predicate) -> None:
        for child in reversed(self.children):
            child.stop(hurried)

    def _restart(self, child: Child, cancelled: Predicate) -> None:
        code = child.exit_code()
        how = "is down" if code is None else f"ended with {ending(code)}"
        self._count_restart(child, how)
        terminal.say(f"{child.name} {how}; starting it again ({child.log})", sign=FAILED)
        time.sleep(RESTART_PAUSE_S)
        started = time.monotonic()
        try:
            child.start(cancelled)
        except StartFailed as failure:
            terminal.say(str(failure), sign=FAILED)
        except Cancelled:
            return
        else:
            terminal.done(f"{child.name} is back", since=started)

    def _count_restart(self, child: Child, how: str) -> None:
        recent = self._restarts[child.name]
        now = time.monotonic()
        if len(recent) == RESTARTS_MAX and now - recent[0] < RESTARTS_WINDOW_S:
            raise StartFailed(
                f"{child.name} {how}, for the {RESTARTS_MAX + 1}th time within a minute.",
                child.log_tail(),
            )
        recent.append(now)
