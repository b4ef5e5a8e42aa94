"""A run that was killed leaves nothing for long: the next one ends its processes and removes its directory."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leftovers
from tests.leftovers import MARK

PREFIX = "tessera-leftovers-"
# A run that starts a store of its own, and something that knows nothing of pid files, as celery's beat.
RUN = f"""
import os, subprocess, time
from demo.valkey import Valkey
from tests import leftovers
with leftovers.directory({PREFIX!r}) as var:
    Valkey(var).start()
    subprocess.Popen(["sleep", "60"], env=os.environ | {{{MARK!r}: str(var)}}, start_new_session=True)
    print(var, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def run() -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    process = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        var = Path(process.stdout.readline().strip())
        yield process, var
        process.kill()
    leftovers.end_processes(var)


def test_what_a_killed_run_left_is_ended_by_the_next(
    run: tuple["subprocess.Popen[str]", Path],
) -> None:
    process, var = run
    left = [pid for pid in leftovers.processes(var) if pid != process.pid]
    process.kill()
    process.wait()
    assert len(left) == 2

    assert leftovers.sweep(PREFIX) == [var]

    assert not var.exists()
    assert not any(is_running(pid) for pid in left)


def test_a_run_that_lives_is_left_alone(run: tuple["subprocess.Popen[str]", Path]) -> None:
    process, var = run
    os.kill(process.pid, signal.SIGSTOP)  # it need not even answer

    assert leftovers.sweep(PREFIX) == []

    assert len(leftovers.processes(var)) == 2


def test_a_directory_that_nobody_has_locked_yet_is_left_alone() -> None:
    with leftovers.directory(PREFIX) as var:
        (var / leftovers.OWNER).unlink()

        assert leftovers.sweep(PREFIX) == []
        assert var.exists()


def is_running(pid: int, within_s: float = 2) -> bool:
    deadline = time.monotonic() + within_s
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < deadline:
        time.sleep(0.02)  # a zombie until init has heard of it
    return Path(f"/proc/{pid}/exe").exists()
