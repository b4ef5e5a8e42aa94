"""Pid files that cannot lie: the process named in one holds it locked for as long as it lives."""

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

POLL_S = 0.02
PROC = Path("/proc")


class Taken(Exception):
    """Someone alive holds the file."""


class PidFile:
    """A pid in a file, locked by the process itself.

    The open file is inherited by the process and by all it starts, so the kernel answers who is
    alive: no pid is believed because it is written somewhere, and a recycled pid gets no signal.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def claim(self) -> Iterator[int]:
        """Lock the file and yield its descriptor, to be inherited. Raise Taken if it is held.

        Leaving the block closes our copy only: the lock stays with whoever inherited it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            yield descriptor
        except BlockingIOError:
            raise Taken(self.path.name) from None
        finally:
            os.close(descriptor)

    def write(self, descriptor: int, pid: int, note: str = "") -> None:
        """Name the holder, with a word for whoever finds the file taken."""
        os.pwrite(descriptor, f"{pid}\n{note}\n".encode(), 0)

    def is_held(self) -> bool:
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def pid(self) -> int | None:
        """Return the pid that is written, alive or not."""
        first = self._lines()[0]
        return int(first) if first.isdigit() else None

    def note(self) -> str:
        return self._lines()[1]

    def holders(self) -> list[int]:
        """Return who holds the file open, the named process first; without /proc only that one."""
        if not self.is_held():
            return []
        named = self.pid()
        if not PROC.is_dir():
            return [named] if named else []
        found = [pid for pid in _processes() if pid != os.getpid() and self._is_open_in(pid)]
        return sorted(found, key=lambda pid: pid != named)

    def stop_holders(self, stop_signal: signal.Signals, *, timeout_s: float) -> bool:
        """Ask the named process to stop, then kill all that still hold the file.

        Return whether it is free in the end.
        """
        for pid in self.holders()[:1]:
            _send(pid, stop_signal)
        if self.wait_until_free(timeout_s):
            return True
        return self.kill_holders()

    def kill_holders(self, *, timeout_s: float = 5.0) -> bool:
        for pid in self.holders():
            _send(pid, signal.SIGKILL)
        return self.wait_until_free(timeout_s)

    def wait_until_free(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.is_held():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _lines(self) -> list[str]:
        try:
            return [*self.path.read_text(encoding="utf-8").splitlines(), "", ""]
        except FileNotFoundError:
            return ["", ""]

    def _is_open_in(self, pid: int) -> bool:
        with suppress(OSError):
            ours = self.path.stat()
            for link in (PROC / str(pid) / "fd").iterdir():
                with suppress(OSError):
                    if os.path.samestat(link.stat(), ours):
                        return True
        return False


def _processes() -> list[int]:
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
