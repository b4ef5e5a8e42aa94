"""The short form of `make faults`: everything is hit once under a hundred clients, and the books agree."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import leftovers

ROOT = Path(__file__).parents[1]
SEED = 1842
CLIENTS = 100
TIMEOUT_S = 240  # on a machine that does much else; alone it takes forty seconds
BEGUN_S_MAX = 60


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tests.faults", "--clients", str(CLIENTS), *options]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DJANGO")}


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_nothing_is_lost_or_charged_twice_whatever_is_killed() -> None:
    done = subprocess.run(
        command("--short", "--seed", str(SEED)),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert figure("completed", done.stdout) >= 20
    assert figure("gateway worker", done.stdout) == figure("postmaster", done.stdout) == 1


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_nothing_outlives_a_fault_run_that_is_killed() -> None:
    with subprocess.Popen(
        command("--seed", "1"), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        var = Path(run.stdout.readline().split()[-1])
        wait_until(lambda: (var / "run" / "upstream.pid").exists())  # and with it both stores

        run.send_signal(signal.SIGKILL)

        wait_until(lambda: leftovers.processes(var) == [])
    assert var in leftovers.sweep("tessera-faults-")


def figure(name: str, printed: str) -> int:
    found = re.search(rf"\b{name} (\d+)", printed)
    return int(found[1]) if found else 0


def wait_until(is_so: Callable[[], bool], within_s: float = BEGUN_S_MAX) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
