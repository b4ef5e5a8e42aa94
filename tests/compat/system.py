"""A running Tessera for other people's clients: what `make up` runs, or one of our own for a while."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo import envfile

ROOT = Path(__file__).parents[2]
START_S_MAX = 240
STOP_S_MAX = 90


class NoSystem(Exception):
    """There is none, and none can be started; the message says why."""


@dataclass(frozen=True)
class System:
    base_url: str
    api_key: str

    def answers(self) -> bool:
        try:
            models = httpx.get(
                f"{self.base_url}/v1/models", headers={"authorization": f"Bearer {self.api_key}"}
            )
        except httpx.TransportError:
            return False
        return models.status_code == 200


@contextmanager
def running() -> Iterator[System]:
    """Yield the system of VAR (var) if it answers; else start one beside it, and stop it. Raises NoSystem."""
    found = _described(ROOT / (os.environ.get("VAR") or "var"))
    if found is not None and found.answers():
        yield found
        return
    var = Path(tempfile.mkdtemp(prefix="tessera-compat-"))
    try:
        with _started(var) as system:
            yield system
    finally:
        shutil.rmtree(var, ignore_errors=True)


@contextmanager
def _started(var: Path) -> Iterator[System]:
    log = var / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "demo.up"],
            cwd=ROOT,
            env=os.environ | {"VAR": str(var), "PORT": str(_free_port())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield _wait_for(process, var, log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S_MAX)


def _wait_for(process: "subprocess.Popen[bytes]", var: Path, log: Path) -> System:
    deadline = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < deadline:
        system = _described(var)
        if system is not None and system.answers():
            return system
        time.sleep(0.2)
    raise NoSystem(f"`make up` does not come up:\n{log.read_text()[-2000:]}")


def _described(var: Path) -> System | None:
    """Read demo.env, which is written when everything is up."""
    variables = envfile.read(var / "demo.env")
    try:
        return System(variables["TESSERA_BASE_URL"], variables["TESSERA_API_KEY"])
    except KeyError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
