"""Everything that runs: the stores, two gateway processes, a Celery worker, the upstream. All in one directory."""

import os
import random
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from demo.child import Child
from demo.parts import HOST, Gateway, Program, Worker, is_free
from demo.pidfile import PROC
from demo.postgres import PostgreSQL
from demo.valkey import Valkey
from tests import leftovers

GATEWAY_WORKERS = 2
REAP_AFTER_S = 15  # three heartbeats
ORPHANS_GONE_S_MAX = 5
PORTS = range(20_000, 30_000)  # below those that outgoing connections are given
PORT_ATTEMPTS_MAX = 100
ENVIRONMENT = {
    "TESSERA_SECRET_KEY": "faults" * 8,
    "TESSERA_KEY_PEPPER": "faults" * 8,
    "TESSERA_CREDENTIAL_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
    "TESSERA_IMAGE_ALLOW_LOOPBACK": "1",
    "TESSERA_REAP_AFTER_S": str(REAP_AFTER_S),
    "TESSERA_SNAPSHOT_POLL_MS": "200",
    "TESSERA_SHUTDOWN_TIMEOUT_S": "5",
    "TESSERA_LOG_LEVEL": "WARNING",
}


class Backend(Program):
    """The upstream, which keeps its own journal."""

    name = "upstream"

    def __init__(self, var: Path, environment: Mapping[str, str], port: int) -> None:
        super().__init__(var, environment)
        self.url = f"http://127.0.0.1:{port}/v1"
        self.journal = self.var / "upstream.jsonl"
        self._port = port

    def command(self) -> list[str]:
        where = ["--port", str(self._port), "--journal", str(self.journal)]
        return [sys.executable, "-m", "tests.faults.upstream", *where]

    def is_ready(self) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex((HOST, self._port)) == 0


class Stage:
    """The parts, in the order in which they need each other. If a run fails they are killed, not stopped."""

    def __init__(self, var: Path) -> None:
        self.var = var
        self.postgres = PostgreSQL(var)
        self.valkey = Valkey(var)
        self.environment: dict[str, str] = {}

    @contextmanager
    def stores(self) -> Iterator[None]:
        """Run the stores and the upstream."""
        with ExitStack() as stack:
            stack.enter_context(self.postgres)
            stack.enter_context(self.valkey)
            self.environment = {
                **os.environ,
                **ENVIRONMENT,
                leftovers.MARK: str(self.var),
                "TESSERA_SPOOL_DIR": str(self.var / "spool"),
                "DATABASE_URL": self.postgres.url,
                "REDIS_URL": self.valkey.url,
            }
            port = stack.enter_context(reserved_port())
            self.upstream = Backend(self.var, self.environment, port)
            stack.enter_context(self.upstream)
            with self._killed_if_it_fails():
                yield

    @contextmanager
    def door(self) -> Iterator[None]:
        """Run the gateway and the Celery worker."""
        with ExitStack() as stack:
            self.gateway = Gateway(
                self.var,
                self.environment,
                port=stack.enter_context(reserved_port()),
                workers=GATEWAY_WORKERS,
            )
            self.worker = Worker(self.var, self.environment)
            stack.callback(self.worker.stop)
            stack.callback(self.gateway.stop)  # first: it books what it still has to
            with self._killed_if_it_fails():
                with ThreadPoolExecutor() as starters:
                    for _ in starters.map(Child.start, (self.gateway, self.worker)):
                        pass
                yield

    @contextmanager
    def _killed_if_it_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            leftovers.end_processes(self.var)
            raise

    @property
    def children(self) -> list[Child]:
        return [self.postgres, self.valkey, self.upstream, self.worker, self.gateway]

    def celery_all(self) -> list[int]:
        """Return the Celery worker with its pool and its beat."""
        worker = self.worker.pid
        return [worker, *children_of(worker)] if worker else []

    def gateway_workers(self) -> list[int]:
        pids = children_of(self.gateway.pid)
        return [pid for pid in pids if "gateway.serve" in command_of(pid)]

    def postgres_backends(self) -> list[int]:
        """Return the servers' processes that have a client."""
        pids = children_of(self.postgres.pid)
        return [pid for pid in pids if command_of(pid).startswith("postgres: tessera ")]

    def postgres_all(self) -> list[int]:
        """Return every process of PostgreSQL, the postmaster first."""
        postmaster = self.postgres.pid
        return [postmaster, *children_of(postmaster)] if postmaster else []


@contextmanager
def reserved_port() -> Iterator[int]:
    """Yield a port that nobody else gets meanwhile, also not while whoever listens there is dead.

    It is bound, but not listened at. Those who share ports on purpose may listen: granian and our upstream do.
    """
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        for _ in range(PORT_ATTEMPTS_MAX):
            port = random.SystemRandom().choice(PORTS)
            if is_free(port) and _binds(reservation, port):  # the former also sees those who share
                break
        else:
            raise OSError("no port is free")
        yield port


def _binds(endpoint: socket.socket, port: int) -> bool:
    with suppress(OSError):
        endpoint.bind((HOST, port))
        return True
    return False


def children_of(pid: int | None) -> list[int]:
    with suppress(OSError):
        return [int(each) for each in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    return []


def command_of(pid: int) -> str:
    with suppress(OSError):
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def kill(*pids: int | None, number: signal.Signals = signal.SIGKILL) -> int:
    """Send the signal to each that is still there; return how many were."""
    reached = 0
    for pid in filter(None, pids):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            reached += 1
    return reached


def wait_until_gone(pids: list[int], within_s: float = ORPHANS_GONE_S_MAX) -> None:
    deadline = time.monotonic() + within_s
    while any(command_of(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
