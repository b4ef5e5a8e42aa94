"""`make compat`: other people's clients against a running Tessera, a line for each.

    python -m tests.compat.run [NAME …]     only the clients whose name begins so

It asks what `make up` runs in VAR, or else starts a system of its own for as long as it takes.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from tests.compat import system
from tests.compat.system import NoSystem, System

HERE = Path(__file__).parent
SIGN = HERE.parents[1] / "demo" / "assets" / "sign.png"
MODEL = "llama3.2-ffm-11b-v-32k-chat"
CLIENT_S_MAX = 180
WORD = "Taipei"  # stands in the image


class Failed(Exception):
    """The client did not get what it should; the message says what."""


Environment = Mapping[str, str]
Check = Callable[[Environment], None]


def main(names: list[str]) -> int:
    """Check the clients that are named, or all; return how many failed."""
    wanted = {
        name: check for name, check in CLIENTS.items() if name.startswith(tuple(names or [""]))
    }
    if not wanted:
        return _complain(f"there is no such client; there are: {'; '.join(CLIENTS)}")
    try:
        with system.running() as tessera, scratch() as directory, pictures(directory) as image_url:
            environment = _environment(tessera, directory, image_url)
            return sum(not passes(name, check, environment) for name, check in wanted.items())
    except NoSystem as reason:
        return _complain(str(reason))


def passes(name: str, check: Check, environment: Environment) -> bool:
    """Run one check and print its line."""
    started = time.monotonic()
    try:
        check(environment)
    except Failed as reason:
        print(f"✗ {name:<34} failed: {reason}", flush=True)
        return False
    print(f"✓ {name:<34} ok, {time.monotonic() - started:.1f} s", flush=True)
    return True


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tessera-compat-") as directory:
        yield Path(directory)


@contextmanager
def pictures(directory: Path) -> Iterator[str]:
    """Put the demo's sign as a JPEG into the directory and serve it on loopback; yield its URL."""
    Image.open(SIGN).convert("RGB").save(directory / "sign.jpg", quality=90)
    handler = functools.partial(Silent, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/sign.jpg"
        server.shutdown()


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def _environment(tessera: System, directory: Path, image_url: str) -> Environment:
    return {
        **os.environ,
        "TESSERA_BASE_URL": tessera.base_url,
        "TESSERA_API_KEY": tessera.api_key,
        "IMAGE_URL": image_url,
        "IMAGE_PATH": str(directory / "sign.jpg"),
        "DIRECTORY": str(directory),
        "MODEL": MODEL,
        "NO_PROXY": "127.0.0.1,localhost",
        "PYTHONIOENCODING": "utf-8",
    }


# ---------------------------------------------------------------- the seed's samples


def sample(name: str, *marks: str) -> Check:
    """Run a sample with Python; its output must hold the marks, in this order."""

    def check(environment: Environment) -> None:
        _expect(_run([sys.executable, str(HERE / "samples" / name)], environment), *marks)

    return check


def curl_sample(environment: Environment) -> None:
    command = (HERE / "samples" / "3_curl.sh").read_text()
    if shutil.which("json_pp") is None:  # only there for the eye, as the seed says
        command = command.replace(" | json_pp", "")
    answer = _run(["sh", "-c", command], environment)
    for mark in ('"choices"', '"usage"', WORD):
        _expect(answer, mark)
    if json.loads(answer)["usage"]["prompt_tokens_details"]["image_tokens"] % 1601:
        raise Failed(f"the image tokens are no multiple of 1601: {answer}")


def curl_stream(environment: Environment) -> None:
    image = {"type": "image_url", "image_url": {"url": environment["IMAGE_URL"]}}
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": [image]}]}
    address = environment["TESSERA_BASE_URL"] + "/v1/chat/completions"
    key = f"Authorization: Bearer {environment['TESSERA_API_KEY']}"
    media_type = "Content-Type: application/json"
    command = ["curl", "-sSNf", address, "-H", key, "-H", media_type, "-d", json.dumps(body)]
    answer = _run(command, environment)
    if not answer.endswith("\n\ndata: [DONE]\n\n"):
        raise Failed(f"the stream ends with {answer[-200:]!r}")


# ---------------------------------------------------------------- clients


def python(name: str) -> Check:
    """Run a script that uses a Python client and fails by an exception."""

    def check(environment: Environment) -> None:
        _run([sys.executable, str(HERE / "clients" / name)], environment)

    return check


def javascript(environment: Environment) -> None:
    """Install the pinned client beside a copy of the script, and run that."""
    directory = Path(environment["DIRECTORY"])
    for path in ("package.json", "package-lock.json", "clients/javascript.mjs"):
        shutil.copy(HERE / path, directory)
    quiet = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    _run(["npm", "ci", "--prefix", str(directory), *quiet], environment)
    _run(["node", str(directory / "javascript.mjs")], environment)


CLIENTS: dict[str, Check] = {
    "sample 1, image by URL": sample("1_image_by_url.py", "輸出: ", WORD),
    "sample 2, image by base64": sample("2_image_by_base64.py", "輸出: ", WORD),
    "sample 3, curl": curl_sample,
    "sample 4, conversation": sample("4_conversation.py", "第一輪輸出:", WORD, "第二輪輸出:"),
    "sample 5, stream": sample("5_stream.py", "Stream 輸出:", WORD),
    "curl, streamed": curl_stream,
    "openai for Python": python("python.py"),
    "openai for JavaScript": javascript,
    "LangChain's ChatOpenAI": python("langchain_chat.py"),
}


def _run(command: list[str], environment: Environment) -> str:
    """Return what the command prints. Raises Failed with the last line of its complaint."""
    if shutil.which(command[0]) is None:
        raise Failed(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=CLIENT_S_MAX,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"no end after {CLIENT_S_MAX} s") from None
    if done.returncode:
        raise Failed(_reason(done.stderr or done.stdout) or f"exit {done.returncode}")
    return done.stdout


def _reason(complaint: str) -> str:
    """Return the line that says most: the last that names an error, else the last."""
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or [""])[-1][:500]


def _expect(text: str, *marks: str) -> None:
    rest = text
    for mark in marks:
        _, found, rest = rest.partition(mark)
        if not found:
            raise Failed(f"{mark!r} is missing in {text[:300]!r}")


def _complain(message: str) -> int:
    print(f"✗ {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
