"""The short form of `make faults`: a quarter of a minute of kills under a hundred clients, and the books agree."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SEED = 1842  # a gateway process, a server process of PostgreSQL, Valkey, Celery, and PostgreSQL stopped
SECONDS = 12
CLIENTS = 100
TIMEOUT_S = 240  # on a machine that does much else


@pytest.mark.slow
@pytest.mark.xdist_group("faults")
def test_nothing_is_lost_or_charged_twice_whatever_is_killed() -> None:
    command = [sys.executable, "-m", "tests.faults"]
    options = ["--seed", str(SEED), "--seconds", str(SECONDS), "--clients", str(CLIENTS)]

    done = subprocess.run(
        [*command, *options],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("DJANGO")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert figure("completed", done.stdout) >= 20
    assert figure("gateway worker", done.stdout) >= 1
    assert figure("postgres stopped", done.stdout) >= 1


def figure(name: str, printed: str) -> int:
    found = re.search(rf"\b{name} (\d+)", printed)
    return int(found[1]) if found else 0
