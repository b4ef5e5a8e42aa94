"""Attempts to sign in: so many for one name from one address, then a wait.

Counted in the memory of each process, so that a person can sign in while Valkey is away; with several processes there
are as many times the attempts. Not by name alone: then anybody could lock out anybody.
"""

from hashlib import sha256

from django.core.cache import cache

FAILURES_MAX = 10
WAIT_S = 300


def begin(username: str, address: str) -> bool:
    """Count an attempt before it is made; False if it must not be made."""
    name = _name(username, address)
    cache.add(name, 0, WAIT_S)
    try:
        return cache.incr(name) <= FAILURES_MAX
    except ValueError:  # it ran out just now
        return True


def forget(username: str, address: str) -> None:
    """Let the name begin anew: somebody signed in by it."""
    cache.delete(_name(username, address))


def _name(username: str, address: str) -> str:
    return "attempts:" + sha256(f"{address} {username.casefold()}".encode()).hexdigest()
