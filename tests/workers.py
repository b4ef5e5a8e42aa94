"""Celery's own worker, as `make up` starts it but for its timetable, over a database and a Valkey of its own.

A database here is a copy of one that was laid out once: two runs begin with the same rows, down to their ids.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import redis
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from psycopg import sql

from demo.parts import Program
from demo.valkey import Valkey
from gateway.celery import app
from gateway.env import celery_broker
from tests.door import database_url
from tests.factories import unique
from tests.faults.stage import children_of

POLL_S = 0.05
RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL
      AND backend_type = 'client backend'
"""


class Pool(Program):
    """A worker with two processes that run tasks. It does nothing but what it is sent."""

    name = "worker"
    stop_timeout_s = 30.0
    start_timeout_s = 120.0

    def __init__(self, var: Path, environment: dict[str, str], application: str) -> None:
        super().__init__(var, environment)
        self._application = application

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "celery", "-A", self._application, "worker"),
            *("--loglevel", "INFO", "--concurrency", "2"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
            *("--include", "billing.invoicing.pdf"),  # once, and not by each process that is killed
        ]

    def is_ready(self) -> bool:
        return " ready." in self.log_tail()

    def children(self) -> list[int]:
        return children_of(self.pid)


class Stage:
    """A worker, its broker and its database, while they last."""

    def __init__(self, worker: Pool, valkey: Valkey) -> None:
        self.worker = worker
        self.broker = redis.Redis.from_url(valkey.url)
        self._url = celery_broker(valkey.url)

    def enqueue(self, task: str, *ids: int) -> None:
        """Send what beat or a sweep would send."""
        with app.connection_for_write(self._url) as to:
            app.send_task(f"billing.tasks.{task}", ids, connection=to)

    def waiting(self) -> int:
        """Return how many messages nobody has taken yet."""
        return sum(int(self.broker.llen(name)) for name in app.amqp.queues)

    def taken(self) -> int:
        """Return how many messages the worker has taken and not acknowledged."""
        return int(self.broker.hlen("unacked"))

    def transactions(self) -> int:
        """Return how many transactions run in the database, ours aside."""
        with connection.cursor() as cursor:
            cursor.execute(RUNNING)
            return int(cursor.fetchone()[0])


@contextmanager
def at_work(directory: Path, *, application: str = "gateway") -> Iterator[Stage]:
    """Run a worker over the database that is connected to now, with a Valkey that nobody else has.

    What it closes is due to be issued at once, here as there.
    """
    with override_settings(CLOSE_MARGIN_S=0), Valkey(directory) as valkey:
        environment = {
            **os.environ,
            "DATABASE_URL": database_url(),
            "REDIS_URL": valkey.url,
            "TESSERA_SPOOL_DIR": str(directory / "spool"),
            "TESSERA_CLOSE_MARGIN_S": "0",
            "TESSERA_LOG_LEVEL": "INFO",  # is_ready reads the log
            "PYTHONWARNINGS": "",
        }
        worker = Pool(directory, environment, application)
        worker.start()
        try:
            yield Stage(worker, valkey)
        finally:
            worker.kill()  # whoever wants it to finish stops it before


@contextmanager
def empty() -> Iterator[str]:
    """Make a database with our tables and nothing in them; yield its name."""
    with _database("template0") as name:
        with connected_to(name):
            call_command("migrate", verbosity=0, interactive=False)
        yield name


@contextmanager
def copied(name: str) -> Iterator[None]:
    """Make a copy of a database that nobody is connected to, and connect to it."""
    with _database(name) as copy, connected_to(copy):
        yield


@contextmanager
def connected_to(name: str) -> Iterator[None]:
    """Have Django's connection lead to another database of the same server."""
    before: Any = connection.settings_dict["NAME"]
    connection.close()
    connection.settings_dict["NAME"] = name
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = before


@contextmanager
def _database(template: str) -> Iterator[str]:
    name = unique("workers").replace("-", "_")
    make = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
    server = urlunsplit(urlsplit(settings.DATABASE_URL)._replace(path="/postgres"))
    with psycopg.connect(server, autocommit=True) as ours:
        ours.execute(make.format(sql.Identifier(name), sql.Identifier(template)))
        try:
            yield name
        finally:
            ours.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def wait_until(is_so: Any, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(POLL_S)
