"""Limits at the door: what a request asks for is charged to all limits over it, or to none.

The counts are kept in Valkey (`lua/admit.lua`, `lua/release.lua`), so that all gateway processes share them; while
it is away, in this process (`gateway.local_limits`). A request is charged its worst case in tokens; when it ends,
that is corrected to what it used, and its place among those that run at once is free again.
"""

import logging
import math
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import msgspec

from gateway.errors import LimitsUnavailable
from gateway.limit_plans import IN_WINDOW, Found, Load, Plan, lay_out
from gateway.local_limits import LocalLimits
from gateway.valkey import Script, Valkey, ValkeyAway
from gateway.windows import EMPTY, KINDS, Window, aged, fits
from tenants.principals import LimitEntry, Principal

logger = logging.getLogger(__name__)

LUA = Path(__file__).parent / "lua"
ADMIT = Script((LUA / "admit.lua").read_text())
RELEASE = Script((LUA / "release.lua").read_text())
WINDOW_MS = 60_000
WINDOW = struct.Struct(">7Q")  # as the scripts keep it: the bucket, then its counts
NO_BUCKET = -1  # we were not told
CONCURRENT_WAIT_MS = 1000  # nobody knows when one of those that run will end
PLANS_MAX = 10_000
SHADOWS_TOLD_MAX = 10_000
SHADOW_QUIET_S = 60
NOTHING = Load(request_id=UUID(int=0), tokens=0, images=0, lease_ms=0)


class Standing(msgspec.Struct, frozen=True):
    """How a limit stood when a request came, and what it leaves."""

    limit: LimitEntry
    share: int  # all of the limit, or this process's part of it
    cost: int
    used: int  # before the request
    remaining: int  # after it
    reset_ms: int  # until nothing is used, if nothing more comes
    wait_ms: int | None  # until such a request fits, if nothing more comes; None: it never will

    @property
    def is_exceeded(self) -> bool:
        return self.wait_ms != 0


class Admission:
    """What the limits said to a request. A context manager: leaving it gives back what can be given back.

    `tokens_used` is asked then. Its requests and images stay counted, whatever became of them.
    """

    def __init__(
        self,
        standings: Sequence[Standing] = (),
        *,
        is_admitted: bool = True,
        is_degraded: bool = False,
        release: Callable[[int], None] | None = None,
    ) -> None:
        self.standings = standings
        self.is_admitted = is_admitted
        self.is_degraded = is_degraded  # kept in this process, as Valkey is away
        self.tokens_used: Callable[[], int] = int
        self._release = release

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Say that the request has ended; nobody waits until that is done."""
        if self._release is not None:
            self._release(self.tokens_used())

    @property
    def enforced(self) -> list[Standing]:
        return [standing for standing in self.standings if not standing.limit.is_shadow]

    @property
    def refusal(self) -> Standing:
        """Return the limit that refuses for the longest. Only of a request that was not admitted."""
        exceeded = [standing for standing in self.enforced if standing.is_exceeded]
        return max(exceeded, key=lambda each: math.inf if each.wait_ms is None else each.wait_ms)

    @property
    def shadow_limited(self) -> list[Standing]:
        """Return the shadow limits that would have refused it."""
        return [each for each in self.standings if each.limit.is_shadow and each.is_exceeded]


class Limiter:
    """Keeps the limits over all requests of this process. Belongs to one event loop."""

    def __init__(self, valkey: Valkey, local: LocalLimits, *, window_ms: int = WINDOW_MS) -> None:
        self._valkey = valkey
        self._local = local
        self._window_ms = window_ms
        self._plans: OrderedDict[tuple[int, str], tuple[tuple[LimitEntry, ...], Plan | None]] = (
            OrderedDict()
        )
        self._shadows = ShadowReport()
        self.is_degraded = False  # whether the last request's limits were kept in this process

    async def start(self) -> None:
        """Connect to Valkey, or try to: limits are kept without it, too."""
        await self._valkey.start()

    async def stop(self) -> None:
        """Let Valkey take what was released, and disconnect. Call it after the last request has ended."""
        await self._valkey.stop()

    async def admit(self, principal: Principal, model_name: str, load: Load) -> Admission:
        """Charge the request to all limits over it, or to none. Waits for Valkey no longer than a command may.

        Raises LimitsUnavailable while it is away, where the organization wants that.
        """
        plan = self._plan(principal, model_name)
        if plan is None:
            return Admission()
        try:
            reply = await self._valkey.evaluate(ADMIT, plan.admission_of(load, self._window_ms))
        except ValkeyAway as error:
            self._note(error)
            if principal.limits_fail_closed:
                raise LimitsUnavailable(
                    "Limits cannot be kept now, and this organization does not go without. Try again shortly.",
                    headers={"retry-after": "1"},
                ) from error
            found = self._local.admit(plan, load, self._window_ms)
        else:
            self._note(None)
            found = _read(plan, reply)
        admission = self._judge(plan, load, found)
        for standing in admission.shadow_limited:
            self._shadows.note(standing)
        return admission

    async def look(self, principal: Principal) -> list[Standing]:
        """Return how the key's limits stand, those of single models included. Charges nothing."""
        standings: list[Standing] = []
        for model_name in dict.fromkeys(limit.model_name for limit in principal.limits):
            found = await self.glance(principal, model_name)
            standings += [each for each in found.standings if each.limit.model_name == model_name]
        return standings

    async def glance(self, principal: Principal, model_name: str = "") -> Admission:
        """Return how the limits over such a request stand, all models' by default. Charges nothing.

        It asks as a request that no ceiling has room for, which both stores refuse without a trace.
        """
        plan = self._plan(principal, model_name)
        if plan is None:
            return Admission()
        blocked = replace(plan, ceilings=(0,) * len(plan.ceilings))
        try:
            reply = await self._valkey.evaluate(
                ADMIT, blocked.admission_of(NOTHING, self._window_ms)
            )
            found = _read(plan, reply)
        except ValkeyAway:
            found = self._local.admit(blocked, NOTHING, self._window_ms)
        return self._judge(plan, NOTHING, found)

    def _plan(self, principal: Principal, model_name: str) -> Plan | None:
        """Return the plan that was made of these very limits, or make it."""
        if not principal.limits:
            return None
        key = (principal.key_id, model_name)
        made_of, plan = self._plans.get(key, ((), None))
        if made_of is not principal.limits:
            plan = lay_out(principal, model_name)
            self._plans[key] = (principal.limits, plan)
            if len(self._plans) > PLANS_MAX:
                self._plans.popitem(last=False)
        return plan

    def _judge(self, plan: Plan, load: Load, found: Found) -> Admission:
        standings = []
        for limit, place in zip(plan.limits, plan.places, strict=True):
            cost = load.cost(limit.kind)
            taken = cost if found.is_admitted else 0
            share = self._local.share(limit.maximum) if found.is_local else limit.maximum
            count = found.counts[place]
            if limit.kind in IN_WINDOW:
                window = Window(
                    count, found.counts[place + KINDS], found.elapsed_ms, self._window_ms
                )
                standings.append(_in_window(limit, window, cost, taken, share))
            else:
                standings.append(_at_once(limit, count, cost, taken, share))
        must_release = found.is_admitted and plan.must_release
        return Admission(
            standings,
            is_admitted=found.is_admitted,
            is_degraded=found.is_local,
            release=partial(self._release, plan, load, found) if must_release else None,
        )

    def _release(self, plan: Plan, load: Load, found: Found, tokens: int) -> None:
        """Tell where it was admitted that it has ended, and Valkey in any case.

        For Valkey may have charged a request that it answered too late. Where it cannot be told, the leases
        expire, and the tokens leave with their window.
        """
        if found.is_local:
            self._local.release(load.request_id, tokens)
        bucket = NO_BUCKET if found.is_local else found.bucket
        arguments = plan.release_of(load.request_id, bucket, tokens - load.tokens)
        with suppress(ValkeyAway):
            self._valkey.evaluate_unheard(RELEASE, arguments)

    def _note(self, error: ValkeyAway | None) -> None:
        """Log when Valkey goes away and when it is back, not at each request."""
        if error is not None and not self.is_degraded:
            logger.warning("limits are kept in this process, in shares: %s", error)
        elif error is None and self.is_degraded:
            logger.warning("limits are kept in Valkey again")
        self.is_degraded = error is not None


class ShadowReport:
    """Logs what shadow limits would have refused, each at most once a minute."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[float, int]] = {}  # limit → when, and how many since

    def note(self, standing: Standing) -> None:
        limit, now_s = standing.limit, time.monotonic()
        told_at, count = self._told.get(limit.id, (-math.inf, 0))
        count += 1
        if now_s - told_at >= SHADOW_QUIET_S:
            logger.warning(
                "shadow limit %d (%d %s, %s %d) would have refused %d requests",
                *(limit.id, limit.maximum, limit.kind.label, limit.level, limit.owner_id, count),
            )
            told_at, count = now_s, 0
        if len(self._told) >= SHADOWS_TOLD_MAX:
            self._told.clear()
        self._told[limit.id] = (told_at, count)


def _read(plan: Plan, reply: list[Any]) -> Found:
    """Read what `lua/admit.lua` answers."""
    is_admitted, bucket, elapsed_ms = reply[:3]
    counts: list[int] = []
    for packed in reply[3 : 3 + len(plan.windows)]:
        at, *window = WINDOW.unpack(packed) if packed else (bucket, *EMPTY)
        counts += aged(window, bucket - at)
    counts += reply[3 + len(plan.windows) :]
    return Found(bool(is_admitted), bucket, elapsed_ms, counts, is_local=False)


def _in_window(limit: LimitEntry, window: Window, cost: int, taken: int, share: int) -> Standing:
    used = window.used
    wait_ms: int | None = 0
    if cost > limit.maximum:
        wait_ms = None
    elif cost and not fits(used, cost, share=share, maximum=limit.maximum):
        wait_ms = window.wait_ms(share - cost) if cost <= share else window.reset_ms
    after = Window(window.current + taken, window.previous, window.elapsed_ms, window.length_ms)
    left = max(0, share - used - taken)
    return Standing(limit, share, cost, used, left, after.reset_ms, wait_ms)


def _at_once(limit: LimitEntry, held: int, cost: int, taken: int, share: int) -> Standing:
    wait_ms = 0 if held < share else CONCURRENT_WAIT_MS
    return Standing(limit, share, cost, held, max(0, share - held - taken), 0, wait_ms)
