"""One process that we own: its own session, its output in a file, its pid file, its stop.

Child is for the supervisor of `make up` and for the tests; PostgreSQL and Valkey are children.
"""

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.pidfile import POLL_S, PidFile

ROOT = Path(__file__).resolve().parent.parent
LOG_BYTES_MAX = 10 * 2**20  # at start; a longer log moves to NAME.log.1
TAIL_LINES = 20
TAIL_BYTES_MAX = 64 * 1024

Predicate = Callable[[], bool]


class StartFailed(Exception):
    """A child did not come up: one line for a person, and the end of its log in `tail`."""

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


class Cancelled(Exception):
    """Whoever waited for a start no longer wants it."""


def never() -> bool:
    return False


class Child(ABC):
    """A process of ours under the directory `var`, with run/NAME.pid and log/NAME.log.

    A context manager: started and ready inside, gone outside. It is not restarted when it dies.
    """

    name: str
    stop_signal = signal.SIGTERM
    stop_timeout_s = 10.0
    start_timeout_s = 30.0

    def __init__(self, var: Path) -> None:
        self.var = var.absolute()
        self.pid_file = PidFile(self.var / "run" / f"{self.name}.pid")
        self.log = self.var / "log" / f"{self.name}.log"
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return what to run."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether it can be used. Must not block for longer than a second."""

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def prepare(self) -> None:
        """Lay out what the command needs, before each start."""
        return

    def start(self, cancelled: Predicate = never) -> None:
        """Start, return when ready. Raise StartFailed or Cancelled with nothing left running."""
        self.stop_leftover()
        self.prepare()
        self._spawn()
        try:
            self._wait_until_ready(cancelled)
        except BaseException:
            self.kill()
            raise

    def stop_leftover(self) -> int | None:
        """Stop what a killed earlier run left running of this child; return its pid, or None."""
        holders = self.pid_file.holders()
        if not self.pid_file.stop_holders(self.stop_signal, timeout_s=self.stop_timeout_s):
            raise StartFailed(f"{self.name} of an earlier run does not stop (pid {holders}).")
        return holders[0] if holders else None

    def stop(self, hurried: Predicate = never) -> None:
        """Ask it to stop; after `stop_timeout_s`, or once hurried, kill it with all it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            self._process.send_signal(self.stop_signal)
        deadline = time.monotonic() + self.stop_timeout_s
        while self._process.poll() is None and time.monotonic() < deadline and not hurried():
            time.sleep(POLL_S)
        self.kill()

    def kill(self) -> None:
        """End it at once, with all it started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            # It leads a group of its own: so falls also what closed our pid file, as celery's beat does.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self.pid_file.kill_holders()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def exit_code(self) -> int | None:
        """Return the code of a child that has ended by itself, else None."""
        return self._process.poll() if self._process else None

    def log_tail(self) -> str:
        """Return the last lines that this start wrote."""
        try:
            with self.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - TAIL_BYTES_MAX))
                text = log.read(TAIL_BYTES_MAX).decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-TAIL_LINES:])

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _spawn(self) -> None:
        self._rotate_log()
        with self.pid_file.claim() as descriptor, self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.command(),
                cwd=ROOT,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # the terminal's Ctrl-C is for the supervisor alone
                pass_fds=[descriptor],
            )
            self.pid_file.write(descriptor, self._process.pid)

    def _rotate_log(self) -> None:
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > LOG_BYTES_MAX:
                self.log.replace(self.log.with_suffix(".log.1"))

    def _wait_until_ready(self, cancelled: Predicate) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not self.is_ready():
            if cancelled():
                raise Cancelled
            if (code := self.exit_code()) is not None:
                raise StartFailed(
                    f"{self.name} ended with {ending(code)} at start.", self.log_tail()
                )
            if time.monotonic() > deadline:
                raise StartFailed(
                    f"{self.name} is not ready after {self.start_timeout_s:.0f} s.", self.log_tail()
                )
            time.sleep(POLL_S)


def ending(code: int) -> str:
    """Say an exit code in words: "code 3", "signal SIGKILL"."""
    return f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
