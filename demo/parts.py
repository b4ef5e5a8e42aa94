"""The programs that `make up` runs beside the two stores."""

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from demo.child import ROOT, TAIL_LINES, Cancelled, Child, Predicate, StartFailed, never
from demo.pidfile import POLL_S

HOST = "127.0.0.1"
PROBE_TIMEOUT_S = 1.0
ANSWER_BYTES_MAX = 64 * 1024


class Program(Child):
    """A Python program of the project, with its environment."""

    def __init__(self, var: Path, environment: Mapping[str, str]) -> None:
        super().__init__(var)
        self._environment = environment

    def environment(self) -> Mapping[str, str]:
        return self._environment


class Backend(Program):
    """The demo backend on a loopback port. Ready when it answers, which is before its models do."""

    name = "backend"

    def __init__(self, var: Path, environment: Mapping[str, str], port: int) -> None:
        super().__init__(var, environment)
        self.url = f"http://{HOST}:{port}"
        self._port = port

    def command(self) -> list[str]:
        address = ["--port", str(self._port)]
        return [sys.executable, "-m", "demo.backend", *address, "--var", str(self.var)]

    def is_ready(self) -> bool:
        return self.health() is not None

    def health(self) -> dict[str, Any] | None:
        """Return what it says of its models ("models", "warming", "skipped"), None if silent."""
        body = fetch(self._port, "/healthz")
        return None if body is None else json.loads(body)


class Gateway(Program):
    """The door. Stopping it lets open streams finish, for as long as it allows them."""

    name = "gateway"
    stop_timeout_s = 40.0  # above the gateway's own deadline, which is the one that decides
    start_timeout_s = 60.0

    def __init__(
        self, var: Path, environment: Mapping[str, str], *, port: int, workers: int
    ) -> None:
        super().__init__(var, environment)
        self.url = f"http://{HOST}:{port}"
        self._port = port
        self._workers = workers

    def command(self) -> list[str]:
        address = ["--host", HOST, "--port", str(self._port)]
        return [sys.executable, "-m", "gateway.serve", *address, "--workers", str(self._workers)]

    def is_ready(self) -> bool:
        return fetch(self._port, "/healthz") is not None


class Worker(Program):
    """Celery's worker, with beat inside. Stopping it lets running tasks finish."""

    name = "worker"
    stop_timeout_s = 20.0
    start_timeout_s = 60.0
    # Waiting for other workers takes 1 s; who is ready says so at this level.
    ALONE = ("--loglevel", "INFO", "--without-gossip", "--without-mingle")

    def environment(self) -> Mapping[str, str]:
        return {**self._environment, "TESSERA_LOG_LEVEL": "INFO"}  # is_ready reads the log

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "gateway", "worker", "--beat"),
            *("--schedule", str(self.var / "celerybeat-schedule")),
            *("--queues", "celery", "--concurrency", "2", *self.ALONE),
        ]

    def is_ready(self) -> bool:
        return " ready." in self.log_tail()


class Messenger(Worker):
    """The worker that delivers events, so that a receiver that takes its time keeps no invoice waiting."""

    name = "messenger"

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", "gateway", "worker"),
            *("--hostname", f"{self.name}@%h", "--queues", "deliveries"),
            *("--concurrency", "2", *self.ALONE),
        ]


def prepare(
    var: Path,
    environment: Mapping[str, str],
    *,
    backend_url: str,
    new_key: bool,
    cancelled: Predicate = never,
) -> str:
    """Run demo/prepare.py to its end and return what it printed; its errors are in its log.

    Raise StartFailed if it fails, Cancelled if it is no longer wanted.
    """
    path = var / "log" / "prepare.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = [sys.executable, "-m", "demo.prepare", "--backend-url", backend_url]
    with path.open("w+b") as log:
        process = subprocess.Popen(
            [*command, "--new-key"] if new_key else command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        output = _wait(process, cancelled)
    if process.returncode != 0:
        lines = path.read_text(errors="replace").splitlines()
        raise StartFailed("The database cannot be prepared.", "\n".join(lines[-TAIL_LINES:]))
    return output


def _wait(process: subprocess.Popen[str], cancelled: Predicate) -> str:
    with process:
        while True:
            try:
                return process.communicate(timeout=POLL_S)[0]
            except subprocess.TimeoutExpired:
                if cancelled():
                    process.kill()
                    raise Cancelled from None


def fetch(port: int, path: str, *, key: str = "") -> bytes | None:
    """GET from loopback: the body of a 200, else None. Waits a second at most."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.read(ANSWER_BYTES_MAX) if answer.status == HTTPStatus.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def free_port(preferred: int) -> int:
    """Return the preferred port of loopback if it is free, else one that is."""
    return preferred if is_free(preferred) else _any_free_port()


def is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except (OSError, OverflowError):  # the latter above 65535
            return False
    return True


def _any_free_port() -> int:
    with socket.socket() as trial:
        trial.bind((HOST, 0))
        port: int = trial.getsockname()[1]
    return port
