"""Limits kept in this process, for as long as Valkey is away.

The same counts under the same rules as in `lua/admit.lua`, but each process keeps to its share: a limit divided by
the number of processes, at least 1. Processes know nothing of each other, nor of what Valkey had counted: going over
to this, or back, lets through one more window at most.
"""

import operator
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from uuid import UUID

from gateway.limit_plans import IN_WINDOW, NO_LIMIT, Found, Load, Plan
from gateway.windows import EMPTY, KINDS, Window, aged, fits
from tenants.limits import LimitKind

TOKENS = IN_WINDOW.index(LimitKind.TOKENS)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class LocalLimits:
    """Keeps the `windows_max` windows that were used last. Belongs to one event loop."""

    def __init__(
        self, *, processes: int, windows_max: int, now_ms: Callable[[], int] = _now_ms
    ) -> None:
        self._processes = processes
        self._windows_max = windows_max
        self._now_ms = now_ms
        self._windows: OrderedDict[str, tuple[int, Sequence[int]]] = OrderedDict()
        self._leases: dict[str, set[UUID]] = {}
        self._charged: dict[UUID, tuple[Plan, int, int]] = {}  # plan, bucket, tokens

    def __len__(self) -> int:
        """Return how many windows are kept, and requests that are yet to end."""
        return len(self._windows) + len(self._charged) + len(self._leases)

    def share(self, maximum: int) -> int:
        """Return this process's part of a limit: at least one of what there is."""
        return max(1, maximum // self._processes) if maximum else 0

    def admit(self, plan: Plan, load: Load, window_ms: int) -> Found:
        """Charge the request to all limits of the plan, or to none."""
        bucket, elapsed_ms = divmod(self._now_ms(), window_ms)
        windows = [self._window(name, bucket) for name in plan.windows]
        counts = [count for window in windows for count in window]
        counts += [len(self._leases.get(name, ())) for name in plan.sets]
        if not self._has_room(plan, load, counts, elapsed_ms, window_ms):
            return Found(False, bucket, elapsed_ms, counts, is_local=True)
        for name, window in zip(plan.windows, windows, strict=True):
            current = map(operator.add, window, load.costs)
            self._keep(name, bucket, [*current, *window[KINDS:]])
        for name in plan.sets:
            self._leases.setdefault(name, set()).add(load.request_id)
            self._charged[load.request_id] = (plan, bucket, load.tokens)
        return Found(True, bucket, elapsed_ms, counts, is_local=True)

    def release(self, request_id: UUID, tokens: int) -> None:
        """End the request: correct its tokens to what it used. Does nothing for one that is not known."""
        if request_id not in self._charged:
            return
        plan, charged_at, charged = self._charged.pop(request_id)
        for name in plan.windows:
            bucket, counts = self._windows.get(name, (charged_at, EMPTY))
            if bucket - charged_at in {0, 1}:
                slot = TOKENS + KINDS * (bucket - charged_at)
                corrected = max(0, counts[slot] + tokens - charged)
                self._windows[name] = (bucket, [*counts[:slot], corrected, *counts[slot + 1 :]])
        for name in plan.sets:
            self._leases[name].discard(request_id)
            if not self._leases[name]:
                del self._leases[name]

    def _has_room(
        self, plan: Plan, load: Load, counts: list[int], elapsed_ms: int, window_ms: int
    ) -> bool:
        slots = len(plan.windows) * KINDS
        for slot, most in enumerate(plan.ceilings[:slots]):
            cost = load.costs[slot % KINDS]
            if most == NO_LIMIT or not cost:
                continue
            place = slot // KINDS * 2 * KINDS + slot % KINDS
            window = Window(counts[place], counts[place + KINDS], elapsed_ms, window_ms)
            if not fits(window.used, cost, share=self.share(most), maximum=most):
                return False
        at_once = zip(counts[2 * slots :], plan.ceilings[slots:], strict=True)
        return all(most == NO_LIMIT or held < self.share(most) for held, most in at_once)

    def _window(self, name: str, bucket: int) -> Sequence[int]:
        """Return the counts of a window as they stand in this bucket."""
        at, counts = self._windows.get(name, (bucket, EMPTY))
        return aged(counts, bucket - at)

    def _keep(self, name: str, bucket: int, counts: Sequence[int]) -> None:
        self._windows[name] = (bucket, counts)
        self._windows.move_to_end(name)
        if len(self._windows) > self._windows_max:
            self._windows.popitem(last=False)
