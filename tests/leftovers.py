"""What a killed test run leaves behind: processes, and a directory under the temporary one. Nothing of it may stay.

A directory is locked by the run that it belongs to for as long as that lives (`demo.pidfile`), so nobody has to
believe a pid that is written somewhere. Processes are told by what they hold open and by their environment.
"""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from demo.pidfile import POLL_S, PROC, PidFile

MARK = "TESSERA_TEST_DIRECTORY"  # in the environment of all that a run starts
OWNER = "owner.pid"
GONE_S_MAX = 10.0


@contextmanager
def directory(prefix: str) -> Iterator[Path]:
    """Yield a new directory that is ours while we live, then remove it; sweep those whose owners are dead."""
    sweep(prefix)
    var = Path(tempfile.mkdtemp(prefix=prefix))
    owner = PidFile(var / OWNER)
    with owner.claim() as descriptor:
        owner.write(descriptor, os.getpid())
        try:
            yield var
        finally:
            shutil.rmtree(var, ignore_errors=True)


def sweep(prefix: str) -> list[Path]:
    """End what dead runs left, and remove their directories; return these.

    A directory without an owner's file is somebody's who is about to lock it, or not ours to judge.
    """
    swept = []
    for var in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        owner = PidFile(var / OWNER)
        if owner.pid() is not None and not owner.is_held():
            end_processes(var)
            shutil.rmtree(var, ignore_errors=True)
            swept.append(var)
    return swept


def end_processes(var: Path) -> list[int]:
    """Kill every process that belongs to the directory, us aside, until none is left; return their pids."""
    ended: list[int] = []
    deadline = time.monotonic() + GONE_S_MAX
    while (found := processes(var)) and time.monotonic() < deadline:
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        ended += [pid for pid in found if pid not in ended]
        time.sleep(POLL_S)
    return ended


def processes(var: Path) -> list[int]:
    """Return who holds one of the directory's pid files, or carries its mark."""
    found = {pid for path in var.glob("run/*.pid") for pid in PidFile(path).holders()}
    mark = f"{MARK}={var}".encode()
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return sorted(found - {os.getpid()})
