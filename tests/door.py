"""The running door: one gateway process for each pytest worker, with the fake backend behind it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import httpx
import psycopg
import pytest
from django.conf import settings
from django.db import connection

from billing.models import Hold, UsageRecord
from gateway.models import Model
from tests import factories
from tests.factories import Tenant
from tests.fake_backend import UPSTREAM_NAME, FakeBackend

ROOT = Path(__file__).parents[1]
START_S_MAX = 120
RESERVING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'tessera reserve %'
      AND state = 'idle' AND query LIKE 'SET plan%'
"""
POLL_MS = 50


@pytest.fixture(scope="session")
def fake_backend() -> Iterator[FakeBackend]:
    backend = FakeBackend()
    backend.start()
    yield backend
    backend.stop()


@dataclass
class Door:
    """The gateway as its clients see it, and the books behind it."""

    url: str
    pid: int
    backend: FakeBackend
    model: Model
    client: httpx.Client

    def chat(self, tenant: Tenant, **body: Any) -> httpx.Response:
        """Ask for a completion; by default a small text question to the door's own model."""
        request = {
            "model": self.model.name,
            "messages": [{"role": "user", "content": "hi"}],
            **body,
        }
        return self.client.post(
            f"{self.url}/v1/chat/completions", json=request, headers=tenant.headers
        )

    def get(self, tenant: Tenant, path: str) -> httpx.Response:
        return self.client.get(f"{self.url}{path}", headers=tenant.headers)

    def record(self, request_id: str, within_s: float = 5) -> UsageRecord:
        """Return the request's usage record, waiting for it a little."""
        return UsageRecord.objects.get(pk=self._wait_for(request_id, within_s))

    def is_unbooked(self, request_id: str) -> bool:
        """Return whether the request left nothing: neither a usage record nor, after a moment, a hold."""
        eventually(lambda: not Hold.objects.filter(pk=request_id).exists())
        return not UsageRecord.objects.filter(pk=request_id).exists()

    def wait_for_model(self, tenant: Tenant, name: str) -> None:
        """Wait until the door has seen a change of the catalog."""
        eventually(lambda: self.get(tenant, f"/v1/models/{name}").status_code == 200)

    def _wait_for(self, request_id: str, within_s: float) -> UUID:
        eventually(lambda: UsageRecord.objects.filter(pk=request_id).exists(), within_s)
        return UUID(request_id)


def eventually(is_so: Any, within_s: float = 5) -> None:
    """Wait until it is so; fail if it never is."""
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def door_url(
    django_db_setup: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, int]]:
    """The door that tests share; yield its URL and pid once it can reserve: a busy machine is slow to connect."""
    with serving(tmp_path_factory.mktemp("door")) as (url, process):
        with psycopg.connect(database_url(), autocommit=True) as watcher:
            eventually(lambda: watcher.execute(RESERVING).fetchone() != (0,), START_S_MAX)
        yield url, process.pid


@contextmanager
def serving(directory: Path, **environment: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run `gateway.serve` on a free port over the tests' database; yield its URL and process."""
    port = free_port()
    log = directory / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.serve", "--port", str(port)],
            cwd=ROOT,
            env=os.environ
            | {"DATABASE_URL": database_url(), "TESSERA_SPOOL_DIR": str(directory / "spool")}
            | {**DOOR_ENVIRONMENT, **environment},
            stdout=output,
            stderr=output,
        )
    try:
        wait_until_open(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait(40)


DOOR_ENVIRONMENT = {
    "TESSERA_SNAPSHOT_POLL_MS": str(POLL_MS),
    "TESSERA_BODY_READ_TIMEOUT_S": "2",
    "TESSERA_HEADER_READ_TIMEOUT_S": "2",
    "TESSERA_CLIENT_WRITE_TIMEOUT_S": "2",
    "TESSERA_STREAM_HEARTBEAT_S": "1",
    "TESSERA_SHUTDOWN_TIMEOUT_S": "5",
    "TESSERA_RESERVE_TIMEOUT_MS": "5000",  # patience with a busy machine; test_outages.py has none
    "PYTHONWARNINGS": "",
}


@pytest.fixture(scope="session")
def vision(django_db_setup: None, django_db_blocker: Any, fake_backend: FakeBackend) -> Model:
    """A priced model, routed to the fake backend, which calls it by another name and has short deadlines."""
    with django_db_blocker.unblock():
        backend = factories.backend(
            fake_backend.url, connect_timeout_s=1, first_byte_timeout_s=2, chunk_timeout_s=2
        )
        return factories.model(backend, backend_model=UPSTREAM_NAME)


@pytest.fixture(scope="session")
def http_client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20) as client:
        yield client


@pytest.fixture
def door(
    door_url: tuple[str, int],
    vision: Model,
    fake_backend: FakeBackend,
    http_client: httpx.Client,
    alice: Tenant,
) -> Door:
    fake_backend.script([])
    door = Door(*door_url, backend=fake_backend, model=vision, client=http_client)
    door.wait_for_model(alice, vision.name)
    return door


def database_url() -> str:
    """Return DATABASE_URL with the name of the database that pytest-django made for this worker."""
    name = connection.settings_dict["NAME"]
    return urlunsplit(urlsplit(settings.DATABASE_URL)._replace(path=f"/{name}"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_open(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while True:
        try:
            if httpx.get(f"{url}/healthz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
