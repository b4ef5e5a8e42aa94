"""The warden: a process that outlives a killed run just long enough to end what that run had started.

`python -m tests.faults.warden DIRECTORY` waits for the end of its standard input, which comes however the run ends.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import leftovers

LAST_ROUND_S_MAX = 20


@contextmanager
def warden(var: Path) -> Iterator[None]:
    """Have one inside; outside, nothing that belongs to the directory runs any more."""
    command = [sys.executable, "-m", "tests.faults.warden", str(var)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert process.stdin is not None
    try:
        yield
    finally:
        process.stdin.close()
        process.wait(LAST_ROUND_S_MAX)


if __name__ == "__main__":
    sys.stdin.read()
    leftovers.end_processes(Path(sys.argv[1]))
