"""Attempts to sign in: so many for one name from one address, then a wait.

They are counted in Valkey, so that all processes share them; while it is away each process counts its share in its
own memory, and says so in the log: then, too, a person can sign in. Not counted by name alone, as anybody could lock
out anybody, and not by address alone, as many people share one.
"""

import logging
import time
from collections import OrderedDict
from hashlib import sha256
from threading import Lock

from django.conf import settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

logger = logging.getLogger(__name__)

FAILURES_MAX = 10
WAIT_S = 300
TIMEOUT_S = 0.5  # less than checking a password takes is not noticed
NAMES_MAX = 10_000  # in the memory of a process


class Attempts:
    """Counts attempts in Valkey, or in this process. For many threads."""

    def __init__(self, url: str, *, processes: int) -> None:
        self._valkey: Redis = Redis.from_url(
            url,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        self._local = LocalCounts()
        self._share = max(1, FAILURES_MAX // processes)
        self._is_degraded = False

    def begin(self, username: str, address: str) -> bool:
        """Count an attempt before it is made; False if it must not be made."""
        name = _name(username, address)
        try:
            count = self._count(name)
        except RedisError as error:
            self._note(error)
            return self._local.count(name) <= self._share
        self._note(None)
        return count <= FAILURES_MAX

    def forget(self, username: str, address: str) -> None:
        """Let the name begin anew: somebody signed in by it."""
        name = _name(username, address)
        self._local.forget(name)
        try:
            self._valkey.delete(name)
        except RedisError as error:
            self._note(error)

    def _count(self, name: str) -> int:
        # In one transaction: a count that ran out between the two would never run out again.
        with self._valkey.pipeline(transaction=True) as pipeline:
            pipeline.set(name, 0, nx=True, ex=WAIT_S)
            pipeline.incr(name)
            return int(pipeline.execute()[-1])

    def _note(self, error: RedisError | None) -> None:
        """Log when Valkey goes away and when it is back, not at each attempt."""
        if error is not None and not self._is_degraded:
            logger.warning("attempts to sign in are counted in this process, in shares: %s", error)
        elif error is None and self._is_degraded:
            logger.warning("attempts to sign in are counted in Valkey again")
        self._is_degraded = error is not None


class LocalCounts:
    """Counts of this process, at most NAMES_MAX; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._counts: OrderedDict[str, tuple[float, int]] = OrderedDict()  # until when, how many
        self._lock = Lock()

    def count(self, name: str) -> int:
        now_s = time.monotonic()
        with self._lock:
            until_s, count = self._counts.get(name, (0.0, 0))
            if until_s <= now_s:
                self._counts.pop(name, None)
                until_s, count = now_s + WAIT_S, 0
            self._counts[name] = (until_s, count + 1)
            if len(self._counts) > NAMES_MAX:
                self._counts.popitem(last=False)
        return count + 1

    def forget(self, name: str) -> None:
        with self._lock:
            self._counts.pop(name, None)


def _name(username: str, address: str) -> str:
    return "tessera:attempts:" + sha256(f"{address} {username.casefold()}".encode()).hexdigest()


ATTEMPTS = Attempts(settings.REDIS_URL, processes=settings.PROCESSES)
