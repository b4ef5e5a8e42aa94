"""A demo backend of our own, over real sockets, once per session; and how to ask it."""

import base64
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SIGN = ROOT / "demo" / "assets" / "sign.png"
Json = dict[str, Any]


@dataclass(frozen=True)
class Server:
    """A running demo backend."""

    url: str
    process: subprocess.Popen[str]
    client: httpx.Client

    def ask(self, body: Json) -> Json:
        """Ask, and return the answer; whatever is not a 200 fails."""
        answer = self.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def health(self) -> Json:
        return dict(self.client.get("/healthz").json())

    def wait_until(self, is_so: Callable[[Json], bool], *, within_s: float) -> bool:
        """Ask for its health until it is so; False if that takes longer."""
        return comes_true(lambda: is_so(self.health()), within_s=within_s)


def comes_true(condition: Callable[[], bool], *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def demo_backend(environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.backend", "--port", "0", "--token-delay-ms", "2"],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, timeout=60) as client:
                yield Server(url, process, client)
        finally:
            process.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The backend with its models loaded."""
    with demo_backend() as running:
        assert running.wait_until(lambda health: not health["warming"], within_s=60)
        yield running


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def data_url(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def user(text: str, *urls: str) -> Json:
    """A user's message: the images, then the text."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def question(*messages: Json, model: str = "image-reader", **parameters: Any) -> Json:
    return {"model": model, "messages": list(messages), **parameters}


def content_of(answer: Json) -> str:
    return str(answer["choices"][0]["message"]["content"])
