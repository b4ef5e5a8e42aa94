"""Keys under limits, and limiters to ask: what the tests of limits share."""

import asyncio
import itertools
import os
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from gateway.limit_plans import Load
from gateway.limits import ADMIT, RELEASE, Admission, Limiter
from gateway.local_limits import LocalLimits
from gateway.request_ids import new_request_id
from gateway.valkey import Valkey
from tenants.limits import LimitKind
from tenants.principals import LimitEntry, Principal

NOWHERE = "redis://127.0.0.1:1"
ids = itertools.count(os.getpid() * 1_000_000)  # nobody else's organizations


def limit(
    kind: str, maximum: int, *, level: str = "key", model: str = "", shadow: bool = False
) -> LimitEntry:
    return LimitEntry(next(ids), level, 0, model, LimitKind(kind), maximum, shadow)


def key_under(*limits: LimitEntry, beside: Principal | None = None) -> Principal:
    """Return a key under these limits: of an organization of its own, or of another key's team."""
    number = next(ids)
    organization_id, team_id = (beside.organization_id, beside.team_id) if beside else (number,) * 2
    owners = {"organization": organization_id, "team": team_id, "key": number}
    words = ("public_id", "organization_name", "team_name", "timezone", "currency")
    others: dict[str, Any] = dict.fromkeys((*words, "bills_aborted", "bills_failed"), "")
    return Principal(
        **others,
        organization_id=organization_id,
        team_id=team_id,
        key_id=number,
        digest=b"",
        organization_slug="acme",
        team_slug="research",
        key_name="laptop",
        allowed_models=None,
        expires_at=None,
        limits=tuple(replace(each, owner_id=owners[each.level]) for each in limits),
    )


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


def a_limiter(url: str = NOWHERE, *, processes: int = 1, **options: int) -> Limiter:
    valkey = Valkey(url, scripts=(ADMIT, RELEASE), timeout_s=2, queue_max=1000)
    local = LocalLimits(processes=processes, windows_max=100, now_ms=wall_ms)
    return Limiter(valkey, local, **options)


async def started(
    stack: AsyncExitStack, url: str = NOWHERE, *, processes: int = 1, **options: int
) -> Limiter:
    """Return a limiter that keeps its counts where it should, until the end."""
    limiter = a_limiter(url, processes=processes, **options)
    await limiter.start()
    stack.callback(lambda: check(limiter.is_degraded is (url == NOWHERE)))
    stack.push_async_callback(limiter.stop)
    return limiter


def check(is_so: bool) -> None:
    assert is_so, "the limits were not kept where the test meant them to be"


async def ask(
    limiter: Limiter,
    who: Principal,
    model: str = "vision",
    *,
    tokens: int = 10,
    images: int = 0,
    lease_ms: int = 60_000,
) -> Admission:
    what = Load(request_id=new_request_id(), tokens=tokens, images=images, lease_ms=lease_ms)
    return await limiter.admit(who, model, what)


async def admitted(limiter: Limiter, who: Principal, count: int, **what: Any) -> int:
    """Ask so many times at once; return how many were admitted."""
    answers = await asyncio.gather(*(ask(limiter, who, **what) for _ in range(count)))
    return sum(answer.is_admitted for answer in answers)


async def used(limiter: Limiter, who: Principal, kind: str) -> int:
    """Return what is used of the key's limit, without using more: the request is too large."""
    stand = await ask(limiter, who, tokens=10**12)
    return next(each.used for each in stand.standings if each.limit.kind == kind)


def end(admission: Admission, tokens: int) -> None:
    admission.tokens_used = lambda: tokens
    with admission:
        pass
