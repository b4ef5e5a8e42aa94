"""`make up` and `make down`: `python -m demo.up [--down]`, with PORT, VAR and WORKERS."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C while Python loads: gone, no traceback

import os  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

from demo import terminal  # noqa: E402
from demo.child import Cancelled, StartFailed  # noqa: E402
from demo.parts import is_free  # noqa: E402
from demo.pidfile import PidFile, Taken  # noqa: E402
from demo.stack import Stack  # noqa: E402
from demo.supervisor import Signals  # noqa: E402
from demo.terminal import FAILED, plain, say  # noqa: E402

PORTS = range(1, 65536)
WORKERS = range(1, 257)
STOP_TIMEOUT_S = 90.0
MODEL = "llama3.2-ffm-11b-v-32k-chat"


class Refused(Exception):
    """We do not start; the message is one line that says why, and what to do."""


def main(arguments: list[str]) -> int:
    terminal.prepare()
    try:
        var = Path(os.environ.get("VAR") or "var").absolute()
        return down(var) if "--down" in arguments else up(var)
    except (Refused, StartFailed) as reason:
        complain(reason)
    except PermissionError as error:
        say(f"{error.filename} is not ours to use: be its owner, or VAR=… make up", sign=FAILED)
    except OSError as error:
        say(str(error), sign=FAILED)
    return 1


def up(var: Path) -> int:
    """Run everything until Ctrl-C, SIGTERM, or a part that keeps dying."""
    signals = Signals()
    port = number("PORT", "8000", PORTS)
    stack = Stack(var, port=port, workers=number("WORKERS", "1", WORKERS), signals=signals)
    pid_file = _pid_file(var)
    try:
        with pid_file.claim() as descriptor:
            pid_file.write(descriptor, os.getpid(), stack.url)
            return _run(stack, port, signals)
    except Taken:
        running = f"already running at {pid_file.note()}, pid {pid_file.pid()}"
        raise Refused(f"{running}. `make down` stops it; another VAR runs beside it.") from None


def _run(stack: Stack, port: int, signals: Signals) -> int:
    started = time.monotonic()
    for name, pid in stack.supervisor.stop_leftovers().items():
        say(f"stopped {name}, pid {pid}, which a killed earlier run had left")
    if not is_free(port):
        raise Refused(f"port {port} is in use: PORT={port + 1} make up")
    try:
        greet(stack, stack.bring_up(), seconds=time.monotonic() - started)
        stack.supervisor.watch(signals.stopping)
    except StartFailed as failure:
        complain(failure)
        return 1
    except Cancelled:
        return 0
    else:
        return 0
    finally:
        say("stopping (Ctrl-C again: at once)")
        stack.supervisor.stop(signals.hurried)
        say("stopped")


def greet(stack: Stack, handed: dict[str, str], *, seconds: float) -> None:
    """Print what a person needs, down to a line that can be pasted."""
    key = handed["TESSERA_API_KEY"]
    if not stack.key_works(key):
        say(
            f"the demo key in {stack.var}/demo.env is lost, revoked or of another database; "
            "to make another and revoke it: NEW_KEY=1 make up"
        )
    plain(f"""
Tessera is up at {stack.url}, after {seconds:.1f} s.

  dashboard   {stack.url}/
              user {handed["TESSERA_ADMIN_USER"]}, password {handed["TESSERA_ADMIN_PASSWORD"]}
  admin       {stack.url}/admin/
  demo key    {key}
  logs        {stack.var}/log/
  stop        Ctrl-C, or `make down`

Ask it about an image:

{curl(stack.url, key, stack.sign_url)}
""")


def curl(url: str, key: str, image_url: str) -> str:
    """Return one line for a shell: a streamed question about an image."""
    return (
        f"curl -N {url}/v1/chat/completions"
        f" -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json'"
        f' -d \'{{"model": "{MODEL}", "stream": true, "messages": [{{"role": "user", "content": ['
        '{"type": "text", "text": "What does this sign say?"}, '
        f'{{"type": "image_url", "image_url": {{"url": "{image_url}"}}}}]}}]}}\''
    )


def down(var: Path) -> int:
    """Stop what runs in `var`, or what a killed run left of it."""
    pid_file = _pid_file(var)
    pid = pid_file.pid()
    if pid_file.is_held() and pid:
        say(f"stopping pid {pid}")
        os.kill(pid, signal.SIGTERM)
        if not pid_file.wait_until_free(STOP_TIMEOUT_S):
            raise Refused(f"pid {pid} does not stop: kill -9 {pid}, then `make down` again.")
        say("stopped")
        return 0
    stack = Stack(var, port=number("PORT", "8000", PORTS), workers=1, signals=Signals())
    left = stack.supervisor.stop_leftovers()
    say(f"stopped what a killed run had left: {', '.join(left)}" if left else "nothing is running")
    return 0


def complain(reason: Refused | StartFailed) -> None:
    """Say what went wrong in a line, and show the end of the log if there is one."""
    say(str(reason), sign=FAILED)
    if isinstance(reason, StartFailed) and reason.tail:
        plain("\n".join(f"    {line}" for line in reason.tail.splitlines()))


def number(name: str, default: str, allowed: range) -> int:
    """Read a whole number from the environment."""
    text = os.environ.get(name) or default
    if not (text.isascii() and text.isdigit() and int(text) in allowed):
        raise Refused(f"{name}={text} is not a number in {allowed[0]}..{allowed[-1]}.")
    return int(text)


def _pid_file(var: Path) -> PidFile:
    return PidFile(var / "run" / "up.pid")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
