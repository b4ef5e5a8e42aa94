"""A private directory for unix sockets, wherever the checkout lies."""

import hashlib
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

LONGEST_NAME = ".s.PGSQL.5432.lock"


class NoSocketDirectory(Exception):
    """No directory takes a unix socket."""


def socket_directory(var: Path) -> Path:
    """Return a directory of mode 0700 that takes sockets: VAR/run, else a temporary one.

    A socket's path must stay under 108 bytes, and some shared file systems take none, so we try.
    The answer is the same on each call for the same `var`. Raise NoSocketDirectory.
    """
    name = f"tessera-{os.getuid()}-{hashlib.sha256(os.fsencode(var.absolute())).hexdigest()[:12]}"
    for directory in (
        var.absolute() / "run",
        Path(tempfile.gettempdir()) / name,
        Path("/tmp") / name,
    ):
        if _is_private(directory) and _takes_sockets(directory):
            return directory
    raise NoSocketDirectory(
        f"No unix socket can be made under {var} nor in {tempfile.gettempdir()}."
    )


def _is_private(directory: Path) -> bool:
    """Make the directory ours alone. False if someone else was there first."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        directory.chmod(0o700)
    except OSError:
        return False
    return True


def _takes_sockets(directory: Path) -> bool:
    trial = directory / f"{LONGEST_NAME}-{secrets.token_hex(3)}"  # others may be trying right now
    with socket.socket(socket.AF_UNIX) as endpoint:
        try:
            endpoint.bind(str(trial))
        except OSError:
            return False
    trial.unlink()
    return True
