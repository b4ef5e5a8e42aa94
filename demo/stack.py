"""All of Tessera on one machine: the embedded stores, the demo backend, the gateway, the worker."""

import json
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import psycopg
import redis
from cryptography.fernet import Fernet

from demo import envfile, terminal
from demo.child import Cancelled, Child, StartFailed
from demo.parts import Backend, Gateway, Messenger, Worker, fetch, free_port, prepare
from demo.postgres import PostgreSQL
from demo.sockets import NoSocketDirectory
from demo.supervisor import Signals, Supervisor
from demo.valkey import Valkey

ADMIN_USER = "admin"
STEPS_AT_ONCE_MAX = 4
STORE_TIMEOUT_S = 5
MODELS_TIMEOUT_S = 90.0
POLL_S = 0.1

SECRETS: dict[str, Callable[[], str]] = {
    "TESSERA_SECRET_KEY": lambda: secrets.token_urlsafe(48),
    "TESSERA_KEY_PEPPER": lambda: secrets.token_urlsafe(32),
    "TESSERA_CREDENTIAL_KEYS": lambda: Fernet.generate_key().decode(),
    "TESSERA_ADMIN_PASSWORD": lambda: secrets.token_urlsafe(12),
}


class Stack:
    """The parts under one directory `var`, and the steps that bring them up.

    DATABASE_URL and REDIS_URL, where they are set, take the place of the embedded stores.
    """

    def __init__(self, var: Path, *, port: int, workers: int, signals: Signals) -> None:
        self.var = var.absolute()
        self.url = f"http://127.0.0.1:{port}"
        self._signals = signals
        self._failed = False
        self._port = port
        self._postgres = None if os.environ.get("DATABASE_URL") else PostgreSQL(self.var)
        self._valkey = None if os.environ.get("REDIS_URL") else Valkey(self.var)
        self._environment: dict[str, str] = {}  # shared with the programs, filled by bring_up
        self._backend = Backend(self.var, self._environment, free_port(port + 100))
        self._worker = Worker(self.var, self._environment)
        self._messenger = Messenger(self.var, self._environment)
        self._gateway = Gateway(self.var, self._environment, port=port, workers=workers)
        stores: list[Child | None] = [self._postgres, self._valkey]
        programs: list[Child] = [self._backend, self._messenger, self._worker, self._gateway]
        self.supervisor = Supervisor([child for child in stores if child] + programs)

    def bring_up(self) -> dict[str, str]:
        """Start everything and return what a person needs to use it, as in VAR/demo.env.

        What does not wait for each other starts at once. Raise StartFailed or Cancelled; then some
        parts may be up, and it is for the supervisor to stop them.
        """
        self._set_environment()
        with ThreadPoolExecutor(STEPS_AT_ONCE_MAX) as pool:
            try:
                return self._steps(pool)
            except BaseException:
                self._failed = True  # so that the steps that run beside the failed one end soon
                raise

    def _steps(self, pool: ThreadPoolExecutor) -> dict[str, str]:
        def step(action: Callable[[], None]) -> Future[None]:
            running.append(pool.submit(action))
            return running[-1]

        running: list[Future[None]] = []
        stores = [step(self._start_postgres), step(self._start_valkey)]
        backend = step(self._start_backend)
        _wait_for(*stores, running=running)
        key = self._prepare()
        door = [step(self._start_gateway), step(self._start_worker), step(self._start_messenger)]
        _wait_for(backend, *door, running=running)
        self._wait_for_models()
        return self._hand_over(key)

    def _cancelled(self) -> bool:
        return self._failed or self._signals.stopping()

    def _set_environment(self) -> None:
        try:
            urls = {
                "DATABASE_URL": self._postgres.url if self._postgres else "",
                "REDIS_URL": self._valkey.url if self._valkey else "",
            }
        except NoSocketDirectory as error:
            raise StartFailed(str(error)) from None
        ours = {
            **self._secrets(),
            **{name: url for name, url in urls.items() if url},
            "TESSERA_IMAGE_ALLOW_LOOPBACK": "1",  # the demo's own image is on loopback
            "TESSERA_STATIC_ROOT": str(self.var / "static"),
            "TESSERA_SPOOL_DIR": str(self.var / "spool"),
        }
        chosen = {name: os.environ.get(name) or value for name, value in ours.items()}
        envfile.write(self.var / "tessera.env", chosen)
        self._environment.update(os.environ, PYTHONUNBUFFERED="1", **chosen)

    def _secrets(self) -> dict[str, str]:
        """Read the secrets, making those that are missing. They are made once, and then kept."""
        path = self.var / "secrets.env"
        found = envfile.read(path)
        made = {name: make() for name, make in SECRETS.items() if name not in found}
        if made:
            started = time.monotonic()
            envfile.write(path, found | made)
            (self.var / ".gitignore").write_text("*\n")  # VAR may lie in the checkout
            terminal.done(f"secrets made, in {path}", since=started)
        return found | made

    def _start_postgres(self) -> None:
        started = time.monotonic()
        if self._postgres:
            self._postgres.start(self._cancelled)
            terminal.done(f"PostgreSQL {self._postgres.version} ready", since=started)
        else:
            version = _postgres_version(os.environ["DATABASE_URL"])
            terminal.done(f"PostgreSQL {version} of DATABASE_URL answers", since=started)

    def _start_valkey(self) -> None:
        started = time.monotonic()
        if self._valkey:
            self._valkey.start(self._cancelled)
            terminal.done(f"Valkey {self._valkey.version} ready", since=started)
        else:
            version = _redis_version(os.environ["REDIS_URL"])
            terminal.done(f"Redis {version} of REDIS_URL answers", since=started)

    def _start_backend(self) -> None:
        started = time.monotonic()
        self._backend.start(self._cancelled)
        terminal.done(f"demo backend ready, {self._backend.url}", since=started)

    def _start_gateway(self) -> None:
        started = time.monotonic()
        self._gateway.start(self._cancelled)
        terminal.done("gateway ready", since=started)

    def _start_worker(self) -> None:
        started = time.monotonic()
        self._worker.start(self._cancelled)
        terminal.done("worker and its timetable ready", since=started)

    def _start_messenger(self) -> None:
        self._messenger.start(self._cancelled)

    def _prepare(self) -> str | None:
        """Migrate, and make the demo organization; return its key if it was made now."""
        started = time.monotonic()
        answer = prepare(
            self.var,
            self._environment,
            backend_url=self._backend.url,
            new_key=bool(os.environ.get("NEW_KEY")),
            cancelled=self._cancelled,
        )
        terminal.done("database and demo organization up to date", since=started)
        key: str | None = json.loads(answer)["api_key"]
        return key

    def _wait_for_models(self) -> None:
        started = time.monotonic()
        health = self._models()
        while health.get("warming") and time.monotonic() - started < MODELS_TIMEOUT_S:
            if self._cancelled():
                raise Cancelled
            time.sleep(POLL_S)
            health = self._models()
        terminal.done(f"models loaded: {', '.join(health.get('models', []))}", since=started)
        for name, reason in health.get("skipped", {}).items():
            terminal.say(f"{name} is left out: {reason}")

    def _models(self) -> dict[str, Any]:
        return self._backend.health() or {}

    def _hand_over(self, new_key: str | None) -> dict[str, str]:
        """Write VAR/demo.env and return what is in it."""
        path = self.var / "demo.env"
        handed = {
            "TESSERA_BASE_URL": self.url,
            "TESSERA_API_KEY": new_key or envfile.read(path).get("TESSERA_API_KEY", ""),
            "TESSERA_ADMIN_USER": ADMIN_USER,
            "TESSERA_ADMIN_PASSWORD": self._environment["TESSERA_ADMIN_PASSWORD"],
        }
        envfile.write(path, handed)
        return handed

    def key_works(self, key: str) -> bool:
        return bool(key) and fetch(self._port, "/v1/models", key=key) is not None

    @property
    def sign_url(self) -> str:
        return f"{self._backend.url}/demo/sign.png"


def _wait_for(*wanted: Future[None], running: list[Future[None]]) -> None:
    """Wait for the wanted steps, raising at once what goes wrong in any that runs."""
    for step in as_completed(running):
        step.result()
        if all(each.done() for each in wanted):
            break
    for step in wanted:
        step.result()


def _postgres_version(url: str) -> str:
    try:
        with psycopg.connect(url, connect_timeout=STORE_TIMEOUT_S) as connection:
            number = connection.info.server_version
    except psycopg.Error as error:
        raise StartFailed(f"DATABASE_URL cannot be used: {str(error).strip()}") from None
    return f"{number // 10000}.{number % 10000}"


def _redis_version(url: str) -> str:
    try:
        with redis.from_url(url, socket_connect_timeout=STORE_TIMEOUT_S) as client:
            return str(client.info("server")["redis_version"])
    except (redis.RedisError, ValueError) as error:
        raise StartFailed(f"REDIS_URL cannot be used: {error}") from None
