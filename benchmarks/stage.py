"""Everything a measurement needs, started from nothing in a temporary directory and stopped after."""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks import work
from benchmarks.backend import HOST, Backend, running
from benchmarks.books import Books
from benchmarks.relay import Relay
from demo.child import ROOT
from demo.parts import Gateway, free_port
from demo.postgres import PostgreSQL
from demo.valkey import Valkey

SERVERS = ("granian", "uvicorn")
SETUPS = ("full", "bare")  # with budgets and limits on every level, or without any
UVICORN = ("uvicorn==0.38.0", "httptools==0.7.1")  # to compare with; no dependency of the project
PORT = 18_000  # or any other that is free
SEED_S_MAX = INSTALL_S_MAX = 60
# Nothing of the caller's own installation may reach the one that is measured.
NOT_OURS = ("TESSERA_", "DATABASE_URL", "REDIS_URL")


class NotInstalled(Exception):
    """The server to compare with is not here and could not be fetched."""


@dataclass(frozen=True)
class Stage:
    """What is running: the door and its key, the backend behind it, the books below it."""

    port: int
    gateway_pid: int
    postgres_pid: int
    key: str
    backend: Backend
    relay: Relay
    books: Books


class UvicornGateway(Gateway):
    """The same application behind uvicorn, one worker."""

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "uvicorn", "gateway.asgi:application"),
            *("--host", HOST, "--port", str(self._port), "--loop", "uvloop", "--http", "httptools"),
            *("--lifespan", "on", "--no-access-log", "--log-level", "warning"),
        ]


@contextmanager
def opened(
    server: str, *, setup: str = "full", workers: int = 1, postgres: PostgreSQL | None = None
) -> Iterator[Stage]:
    """Start the stores, the backend and the door, the fsyncs of a real installation included.

    A PostgreSQL that runs already is used as it is, with what is in it.
    """
    with ExitStack() as stack:
        var = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tessera-bench-")))
        postgres = postgres or stack.enter_context(PostgreSQL(var))
        valkey = stack.enter_context(Valkey(var))
        backend = stack.enter_context(running(work.everything()))
        environment = settings(postgres.url, valkey.url)
        key = _seed(environment, backend, setup)
        port = free_port(PORT)
        door = _gateway(server, var, environment, port, workers)
        stack.enter_context(door)
        relay = Relay(var, port=free_port(port + 1), backend_port=backend.port)
        stack.enter_context(relay)
        assert door.pid is not None
        assert postgres.pid is not None
        yield Stage(port, door.pid, postgres.pid, key, backend, relay, Books(postgres.url))


def settings(database_url: str, redis_url: str) -> dict[str, str]:
    """Return the environment of a process of ours that uses these stores."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)}
    return inherited | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "TESSERA_SECRET_KEY": secrets.token_hex(),
        "TESSERA_KEY_PEPPER": secrets.token_hex(),
        "TESSERA_CREDENTIAL_KEYS": "YmVuY2htYXJrLWJlbmNobWFyay1iZW5jaG1hcmstISE=",
        "TESSERA_LOG_LEVEL": "WARNING",
        # A busy machine's disk may stall; refusing for that is right, and not what is measured.
        "TESSERA_RESERVE_TIMEOUT_MS": "10000",
    }


def _seed(environment: dict[str, str], backend: Backend, setup: str) -> str:
    command = [sys.executable, "-m", "benchmarks.seed", str(backend.port), setup]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, timeout=SEED_S_MAX
    )
    return done.stdout.decode().strip()


def _gateway(
    server: str, var: Path, environment: dict[str, str], port: int, workers: int
) -> Gateway:
    if server == "granian":
        return Gateway(var, environment, port=port, workers=workers)
    return UvicornGateway(var, _with_uvicorn(environment, var / "uvicorn"), port=port, workers=1)


def _with_uvicorn(environment: dict[str, str], directory: Path) -> dict[str, str]:
    """Return an environment that has uvicorn: ours if it is there, else a fresh one beside the data."""
    if find_spec("uvicorn") and find_spec("httptools"):
        return environment
    uv = Path(sys.executable).with_name("uv")
    pip = [str(uv), "pip"] if uv.exists() else [sys.executable, "-m", "pip"]
    command = [*pip, "install", "--quiet", "--target", str(directory)]
    try:
        subprocess.run([*command, *UVICORN], check=True, timeout=INSTALL_S_MAX)
    except (subprocess.SubprocessError, OSError) as error:
        raise NotInstalled("uvicorn could not be installed to compare with") from error
    return environment | {"PYTHONPATH": str(directory)}
