"""Lay out .venv: `python3 demo/environment.py [--anew] FILE`. Standard library only.

It adds what the file pins and checks every hash; it removes nothing, so that `make up` and `make
test` can share one .venv. A second run is instant. Nothing is ever compiled: wheels only.
"""

from __future__ import annotations  # older Pythons must live long enough to be told what they lack

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import venv
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Iterator, NoReturn  # noqa: UP035 - as above

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
LOG = VENV / "install.log"
PYTHON_MINIMUM = (3, 11)
TAIL_LINES = 12

# What installers say when it is not our fault, and the way out. First match wins.
REASONS = [
    (r"No space left", "The disk is full: the environment needs about 1 GB."),
    (r"Permission denied", "A file cannot be written: is .venv another user's? Remove it."),
    (
        r"name resolution|dns error|connection|connect error|timed out|unreachable|proxy|SSL",
        "The package index cannot be reached. Check the network, or point PIP_INDEX_URL and"
        " UV_DEFAULT_INDEX at a mirror, and run again: what was loaded is kept.",
    ),
    (
        r"hash mismatch|DO NOT MATCH",
        "A package is not the one that was pinned. Try again; if it stays, your index or proxy"
        " changes packages.",
    ),
    (
        r"no wheel|no usable wheels|No matching distribution|no solution|Could not find a version",
        "A package has no wheel for this Python and platform. Python 3.11 to 3.13 on Linux"
        " (x86-64 or arm64, glibc) works: `make up PYTHON=python3.12`.",
    ),
]


class NoWay(Exception):
    """The environment cannot be laid out; the message says why, and what to do."""


def main(arguments: list[str]) -> None:
    if sys.version_info < PYTHON_MINIMUM:
        stop(
            f"Tessera needs Python 3.11 or newer, this is {sys.version.split()[0]}:"
            " `make up PYTHON=/path/to/python3.12`."
        )
    requirements = ROOT / arguments[-1]
    anew = "--anew" in arguments
    try:
        with alone():
            lay_out(requirements, anew=anew)
    except (NoWay, OSError) as reason:
        stop(str(reason))
    except KeyboardInterrupt:
        stop("stopped; run it again to go on.", code=130)


def stop(message: str, code: int = 1) -> NoReturn:
    print(f"✗ {message}", file=sys.stderr)
    raise SystemExit(code)


@contextmanager
def alone() -> Iterator[None]:
    """Hold the checkout's directory locked, so that two runs do not install at once."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another run is preparing .venv; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:
            pass  # some network file systems lock no directories
        yield
    finally:
        os.close(descriptor)


def lay_out(requirements: Path, *, anew: bool) -> None:
    started = time.monotonic()
    make_venv(anew=anew)
    name = requirements.relative_to(ROOT)
    stamp = VENV / "{}.sha256".format("-".join(name.with_suffix("").parts))
    pins = requirements.read_bytes()
    digest = hashlib.sha256(pins).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    count = len(re.findall(rb"^[\w.-]+==", pins, re.MULTILINE))
    say(f"installing {count} packages from {name} (some 300 MB the first time)")
    install(requirements)
    stamp.write_text(digest)
    say(f"environment ready in {time.monotonic() - started:.1f} s")


def make_venv(*, anew: bool) -> None:
    """Create .venv, or build it anew if its Python is gone, or not the one that was asked for."""
    version = venv_version()
    if version is not None and (version == sys.version_info[:2] or not anew):
        return
    if VENV.exists():
        say(f"rebuilding .venv with {sys.executable}")
        shutil.rmtree(VENV)
    venv.create(VENV, with_pip=False, symlinks=True)


def venv_version() -> tuple[int, int] | None:
    """Return the version of .venv's Python, or None where it does not run or is too old."""
    script = "import sys; print(*sys.version_info[:2])"
    try:
        answer = subprocess.run([str(PYTHON), "-c", script], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    major, minor = answer.stdout.split()
    version = (int(major), int(minor))
    return version if version >= PYTHON_MINIMUM else None


def install(requirements: Path) -> None:
    """Install with uv, which is several times faster, or else with pip."""
    uv, pip = installers(requirements)
    common = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "-r", str(requirements)]
    attempts = []
    if uv:
        by_uv = [*uv, "pip", "install", "--python", str(PYTHON), *common]
        # With the certificates that uv brings, then with the system's: a company has its own there.
        attempts += [by_uv, [*by_uv, "--system-certs"]]
    if pip:
        attempts.append([*pip, "install", "--retries", "2", "--timeout", "30", *common])
    output = ""
    for command in attempts:
        done = run(command)
        if done.returncode == 0:
            return
        output = done.stdout
    raise NoWay(explain(output))


def installers(requirements: Path) -> tuple[list[str] | None, list[str] | None]:
    """Return commands for uv and for pip, at least one of them, bringing uv in where pip can."""
    pip = find_pip()
    if not UV.is_file() and pip:
        pinned = VENV / "uv.txt"
        pinned.write_text(uv_pin(requirements))
        run([*pip, "install", "--only-binary", ":all:", "--require-hashes", "-r", str(pinned)])
    uv = str(UV) if UV.is_file() else shutil.which("uv")
    if not uv and not pip:
        raise NoWay(
            "This Python can install nothing: it has neither ensurepip nor pip. On Debian and"
            " Ubuntu: `apt install python3-venv`; elsewhere install pip or uv. Then run it again."
        )
    return [uv] if uv else None, pip


def find_pip() -> list[str] | None:
    """Return .venv's own pip, else the system's working on .venv, else one made for .venv."""
    options = ["--disable-pip-version-check", "--no-input"]
    own = [str(PYTHON), "-m", "pip", *options]
    system = [sys.executable, "-m", "pip", "--python", str(PYTHON), *options]
    for pip in (own, system):
        if run([*pip, "--version"]).returncode == 0:
            return pip
    if run([str(PYTHON), "-m", "ensurepip"]).returncode == 0:
        return own
    return None


def uv_pin(requirements: Path) -> str:
    """Cut uv's own pin, with its hashes, out of the requirements."""
    found = re.search(r"^uv==(?:.*\\\n)*.*", requirements.read_text(), re.MULTILINE)
    if found is None:
        raise NoWay(f"{requirements.name} does not pin uv; `make lock` makes it anew.")
    return found[0] + "\n"


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def explain(output: str) -> str:
    """Turn an installer's complaint into one line; all of it is in LOG."""
    LOG.write_text(output)
    for pattern, meaning in REASONS:
        if re.search(pattern, output, re.IGNORECASE):
            return f"{meaning} (All that was said: {LOG.relative_to(ROOT)})"
    tail = "\n".join(f"    {line}" for line in output.strip().splitlines()[-TAIL_LINES:])
    return f"The packages cannot be installed:\n{tail}"


def say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(f"· {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
