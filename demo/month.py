"""`make demo-month`: a month of three organizations, from requests over HTTP to PDFs in VAR/demo-month.

It starts stores, the demo backend and a gateway of its own, which stop with it; what it leaves are the PDFs. Each run
begins anew.
"""

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from cryptography.fernet import Fernet

from demo.child import ROOT, StartFailed
from demo.parts import Backend, Gateway, free_port, prepare
from demo.postgres import PostgreSQL
from demo.valkey import Valkey

REQUESTS_OF_A_KEY = 40
AT_ONCE = 4
REQUEST_TIMEOUT_S = 60
MODELS_TIMEOUT_S = 90
ANSWER_BYTES_MAX = 2**20
PORT = 8790


def main() -> int:
    directory = Path(os.environ.get("VAR", "var")).absolute() / "demo-month"
    state = directory / "state"
    shutil.rmtree(state, ignore_errors=True)
    try:
        with ExitStack() as stack:
            _run(stack, directory, state)
    except StartFailed as error:
        print(f"✗ {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(state, ignore_errors=True)
    return 0


def _run(stack: ExitStack, directory: Path, state: Path) -> None:
    postgres = stack.enter_context(PostgreSQL(state, durable=False))
    valkey = stack.enter_context(Valkey(state))
    environment = _environment(postgres.url, valkey.url, state)
    backend = stack.enter_context(Backend(state, environment, free_port(PORT + 100)))
    prepare(state, environment, backend_url=backend.url, new_key=False)
    keys = json.loads(_manage(environment, "demo_month", "enter"))
    port = free_port(PORT)
    gateway = stack.enter_context(Gateway(state, environment, port=port, workers=1))
    _wait_for_models(backend)
    print(f"✓ stores, demo backend and gateway are up: {gateway.url}")
    sign = f"{backend.url}/demo/sign.png"
    for organization, teams in keys.items():
        tokens = _ask_all(gateway.url, list(teams.values()), sign)
        print(f"✓ {organization}: {len(tokens)} requests over HTTP, {sum(tokens)} tokens")
    print(_manage(environment, "demo_month", "close", "--output", str(directory)), end="")


def _environment(database_url: str, redis_url: str, state: Path) -> dict[str, str]:
    return {
        **os.environ,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "TESSERA_SECRET_KEY": secrets.token_urlsafe(48),
        "TESSERA_KEY_PEPPER": secrets.token_urlsafe(32),
        "TESSERA_CREDENTIAL_KEYS": Fernet.generate_key().decode(),
        "TESSERA_ADMIN_PASSWORD": secrets.token_urlsafe(12),
        "TESSERA_SPOOL_DIR": str(state / "spool"),
        "TESSERA_STATIC_ROOT": str(state / "static"),
        "TESSERA_IMAGE_ALLOW_LOOPBACK": "1",
        "TESSERA_LOG_LEVEL": "WARNING",
    }


def _manage(environment: Mapping[str, str], *words: str) -> str:
    """Run a management command and return what it printed; StartFailed if it fails."""
    command = [sys.executable, "manage.py", *words]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise StartFailed(f"manage.py {' '.join(words)} failed.\n{done.stdout}")
    return done.stdout


def _wait_for_models(backend: Backend) -> None:
    deadline = time.monotonic() + MODELS_TIMEOUT_S
    while (backend.health() or {"warming": True}).get("warming"):
        if time.monotonic() > deadline:
            raise StartFailed("The demo models did not load.")
        time.sleep(0.2)


def _ask_all(url: str, keys: list[str], sign: str) -> list[int]:
    """Ask for each key, some at once: about no picture, one or two, by URL or inline, streamed or not."""
    with urllib.request.urlopen(sign, timeout=REQUEST_TIMEOUT_S) as answer:
        inline = base64.b64encode(answer.read(ANSWER_BYTES_MAX)).decode()
    pictures = [[], [], [sign], [], [f"data:image/png;base64,{inline}"], [], [sign, sign], []]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        asked = [
            pool.submit(_ask, url, key, pictures[number % len(pictures)], bool(number % 3))
            for number in range(REQUESTS_OF_A_KEY)
            for key in keys
        ]
        return [each.result() for each in asked]


def _ask(url: str, key: str, pictures: list[str], is_streamed: bool) -> int:
    """Ask what is on the pictures, through the gateway; return how many tokens that was."""
    content: list[dict[str, object]] = [{"type": "text", "text": "What is on it?"}]
    content += [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    body: dict[str, object] = {
        "model": "image-reader",
        "messages": [{"role": "user", "content": content}],
    }
    if is_streamed:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as answer:
        text = answer.read(ANSWER_BYTES_MAX).decode()
    if is_streamed:  # the last event before [DONE]
        text = text.strip().split("\n\n")[-2].removeprefix("data: ")
    return int(json.loads(text)["usage"]["total_tokens"])


if __name__ == "__main__":
    sys.exit(main())
