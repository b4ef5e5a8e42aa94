"""What `make up` says to a person: a line per step, coloured on a terminal, plain elsewhere."""

import os
import sys
import threading
import time
from contextlib import suppress
from typing import Final

DONE: Final = "✓"
NOTE: Final = "·"
FAILED: Final = "✗"
COLOURS = {DONE: "32", NOTE: "33", FAILED: "31"}
WIDTH = 58

_one_at_a_time = threading.Lock()


def prepare() -> None:
    """Let a terminal without our signs show a `?` instead of failing."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace", line_buffering=True)


def done(text: str, *, since: float) -> None:
    """Print a step that is done, and the seconds it took since that reading of time.monotonic."""
    say(f"{text:<{WIDTH}}{time.monotonic() - since:6.1f} s", sign=DONE)


def say(text: str, *, sign: str = NOTE) -> None:
    plain(f"\033[{COLOURS[sign]}m{sign}\033[0m {text}" if _is_coloured() else f"{sign} {text}")


def plain(text: str = "") -> None:
    """Print a line. A reader that has gone away is no reason to stop."""
    with _one_at_a_time, suppress(OSError):
        print(text, flush=True)


def _is_coloured() -> bool:
    return sys.stdout.isatty() and "NO_COLOR" not in os.environ
