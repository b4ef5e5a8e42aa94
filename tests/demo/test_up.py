"""`make up` as a person has it: one process, its lines, Ctrl-C, and what is left on the disk."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import httpx
import pytest

from demo import envfile
from demo.pidfile import PidFile

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120

pytestmark = pytest.mark.slow


class Up:
    """A running `python -m demo.up`, and the lines that it has printed."""

    def __init__(self, var: Path, port: int, **environment: str) -> None:
        self.var = var
        self.url = f"http://127.0.0.1:{port}"
        self._output = var.parent / f"{var.name}.out"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "demo.up"],
                cwd=ROOT,
                env=bare_environment() | {"VAR": str(var), "PORT": str(port)} | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self._output.read_text()

    def wait_until(self, is_so: Callable[[], object], timeout_s: float = START_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_so():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait_until_said(self, words: str) -> None:
        self.wait_until(lambda: words in self.said() or self.process.poll() is not None)
        assert words in self.said(), self.said()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_failure: object) -> None:
        if self.process.poll() is None:
            self.end(signal.SIGTERM)

    def held(self) -> list[Path]:
        """Return the pid files of what is still alive."""
        return [file for file in (self.var / "run").glob("*.pid") if PidFile(file).is_held()]

    def pid_file(self, name: str) -> PidFile:
        return PidFile(self.var / "run" / f"{name}.pid")


def bare_environment() -> dict[str, str]:
    """Return ours without what the tests have set for themselves."""
    ours = ("TESSERA_", "DATABASE_URL", "REDIS_URL", "DJANGO_", "PYTEST_", "COV_")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("up") / "a var"


@pytest.fixture(scope="module")
def up(var: Path) -> Iterator[Up]:
    with Up(var, free_port()) as running:
        running.wait_until_said("Ask it about an image")
        yield running


def test_the_first_line_to_paste_works(up: Up) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl here")
    line = next(line for line in up.said().splitlines() if line.startswith("curl "))
    answer = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True).stdout
    chunks = [json.loads(data) for data in re.findall(r"^data: (\{.*)$", answer, re.MULTILINE)]
    assert len(chunks) > 2
    assert answer.rstrip().endswith("data: [DONE]")


def test_it_hands_over_what_a_program_needs_to_its_owner_only(up: Up) -> None:
    file = up.var / "demo.env"
    handed = envfile.read(file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert handed["TESSERA_BASE_URL"] == up.url
    headers = {"authorization": f"Bearer {handed['TESSERA_API_KEY']}"}
    assert httpx.get(f"{up.url}/v1/models", headers=headers).status_code == 200


def test_the_login_that_it_prints_is_one(up: Up) -> None:
    handed = envfile.read(up.var / "demo.env")
    with httpx.Client(base_url=up.url, follow_redirects=True) as browser:
        page = browser.get("/")
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
        assert token is not None
        form = {
            "username": handed["TESSERA_ADMIN_USER"],
            "password": handed["TESSERA_ADMIN_PASSWORD"],
            "csrfmiddlewaretoken": token[1],
        }
        assert f"dashboard   {up.url}/\n" in up.said()
        overview = browser.post(page.url, data=form)
        assert overview.url.path == "/o/demo/"
        assert "/static/dashboard/dashboard.css" in overview.text
        assert browser.get("/static/dashboard/dashboard.css").status_code == 200
        assert "/admin/logout/" in browser.get("/admin/").text


def test_a_second_one_says_where_the_first_is(up: Up) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "demo.up"],
        cwd=ROOT,
        env=bare_environment() | {"VAR": str(up.var), "PORT": str(free_port())},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 1
    assert f"already running at {up.url}, pid {up.process.pid}" in second.stdout


@pytest.mark.parametrize("name", ["gateway", "postgres"])
def test_what_dies_is_started_again(up: Up, name: str) -> None:
    pid = up.pid_file(name).pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    up.wait_until(lambda: f"{name} is back" in up.said(), timeout_s=30)
    assert httpx.get(f"{up.url}/healthz").status_code == 200


def test_after_a_kill_the_next_start_cleans_up_and_keeps_the_key(up: Up) -> None:
    key = envfile.read(up.var / "demo.env")["TESSERA_API_KEY"]
    up.end(signal.SIGKILL)
    assert up.pid_file("valkey").is_held()
    port = int(up.url.rpartition(":")[2])
    with Up(up.var, port) as again:  # the same port: the gateway that was left has given it back
        again.wait_until_said("Ask it about an image")
        assert "which a killed earlier run had left" in again.said()
        assert envfile.read(up.var / "demo.env")["TESSERA_API_KEY"] == key
        assert again.end(signal.SIGINT) == 0
    assert "is lost" not in again.said()
    assert "Traceback" not in again.said()
    assert not again.held()


def test_a_port_in_use_gets_one_line_and_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Up(tmp_path / "var", port) as refused:
            assert refused.process.wait(30) == 1
    assert refused.said() == f"✗ port {port} is in use: PORT={port + 1} make up\n"


def test_a_database_that_does_not_answer_gets_a_line_with_the_reason(tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:1/no"
    with Up(tmp_path / "var", free_port(), DATABASE_URL=url) as refused:
        assert refused.process.wait(60) == 1
    assert "✗ DATABASE_URL cannot be used: connection failed" in refused.said()
    assert "Traceback" not in refused.said()


def test_ctrl_c_during_the_start_leaves_nothing_behind(tmp_path: Path) -> None:
    with Up(tmp_path / "var", free_port()) as early:
        early.wait_until(early.pid_file("valkey").is_held)
        assert early.end(signal.SIGINT) == 0
    assert "Traceback" not in early.said()
    assert not early.held()
