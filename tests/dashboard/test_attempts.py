"""Attempts to sign in are counted once for all processes, and in each while Valkey is away."""

import logging

import pytest
from django.conf import settings
from redis import Redis

from dashboard.attempts import FAILURES_MAX, WAIT_S, Attempts, LocalCounts
from demo.valkey import Valkey
from tests import leftovers
from tests.factories import unique

ADDRESS = "192.0.2.1"
NOWHERE = "unix:///nowhere/valkey.sock"


def made(attempts: Attempts, name: str, address: str = ADDRESS) -> int:
    """Try until it must wait; return how many attempts it had."""
    return sum(attempts.begin(name, address) for _ in range(FAILURES_MAX + 1))


def test_processes_share_one_count() -> None:
    first, second = (Attempts(settings.REDIS_URL, processes=2) for _ in range(2))
    name = unique("alice")

    assert all(first.begin(name, ADDRESS) for _ in range(4))
    assert made(second, name) == FAILURES_MAX - 4
    assert not first.begin(name, ADDRESS)


def test_each_name_has_its_own_at_each_address() -> None:
    attempts, name = Attempts(settings.REDIS_URL, processes=1), unique("alice")

    assert made(attempts, name) == FAILURES_MAX
    assert not attempts.begin(name.upper(), ADDRESS)
    assert attempts.begin(name, "192.0.2.2")
    assert attempts.begin(f"{name}x", ADDRESS)


def test_who_signed_in_begins_anew() -> None:
    attempts, name = Attempts(settings.REDIS_URL, processes=1), unique("alice")
    made(attempts, name)
    attempts.forget(name, ADDRESS)

    assert made(attempts, name) == FAILURES_MAX


def test_a_count_ends() -> None:
    attempts, valkey = Attempts(settings.REDIS_URL, processes=1), Redis.from_url(settings.REDIS_URL)
    before = set(valkey.keys("tessera:attempts:*"))
    attempts.begin(unique("alice"), ADDRESS)
    attempts.begin(unique("alice"), ADDRESS)

    made = set(valkey.keys("tessera:attempts:*")) - before
    assert len(made) == 2
    assert all(0 < valkey.ttl(name) <= WAIT_S for name in made)


@pytest.mark.parametrize(("processes", "share"), [(1, FAILURES_MAX), (4, 2), (100, 1)])
def test_while_valkey_is_away_each_process_counts_its_share(processes: int, share: int) -> None:
    attempts = Attempts(NOWHERE, processes=processes)

    assert made(attempts, "alice") == share
    attempts.forget("alice", ADDRESS)
    assert made(attempts, "alice") == share


def test_it_says_once_that_valkey_is_away_and_once_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with leftovers.directory("tessera-attempts-") as directory:
        with Valkey(directory) as server:
            attempts = Attempts(server.url, processes=1)
            attempts.begin("alice", ADDRESS)
        with caplog.at_level(logging.WARNING):
            assert made(attempts, "alice") == FAILURES_MAX
            with Valkey(directory):
                attempts.begin("alice", ADDRESS)
                attempts.begin("alice", ADDRESS)

    away, back = [record.message for record in caplog.records]
    assert "counted in this process, in shares" in away
    assert "counted in Valkey again" in back


def test_the_memory_of_a_process_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.attempts.NAMES_MAX", 2)
    counts = LocalCounts()

    assert [counts.count(name) for name in ("a", "b", "b", "c", "a")] == [1, 1, 2, 1, 1]


def test_a_count_of_a_process_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, clock = LocalCounts(), [100.0]
    monkeypatch.setattr("dashboard.attempts.time.monotonic", lambda: clock[0])

    assert [counts.count("a"), counts.count("a")] == [1, 2]
    clock[0] += WAIT_S
    assert counts.count("a") == 1
