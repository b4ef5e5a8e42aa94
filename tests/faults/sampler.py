"""Looks at every budget ten times a second, whenever PostgreSQL answers: is more spent and held than it allows?"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg

PERIOD_S = 0.1
ANSWER_S_MAX = 5.0
VIOLATIONS_MAX = 20

# One statement sees one instant. A process that was taken for dead, and settles after all, adds the difference to
# what was estimated (an `adjustment`); only by such late truths may a budget be passed.
QUERY = """
SELECT w.id, b.limit_micro::numeric * 1000000, b.limit_tokens, w.spent_pico, w.held_pico, w.spent_tokens, w.held_tokens,
       coalesce(h.pico, 0), coalesce(h.tokens, 0), coalesce(late.pico, 0), coalesce(late.tokens, 0)
FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
LEFT JOIN (
    SELECT u.id, sum(u.pico) AS pico, sum(u.tokens) AS tokens
    FROM billing_hold, unnest(window_ids, window_pico, window_tokens) u (id, pico, tokens)
    GROUP BY u.id) h ON h.id = w.id
LEFT JOIN LATERAL (
    SELECT sum(amount_pico) AS pico,
           sum(tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out) AS tokens
    FROM billing_usagerecord r
    WHERE r.kind = 'adjustment' AND w.id = ANY (r.window_ids)
      AND (w.spent_pico + w.held_pico > b.limit_micro::numeric * 1000000
           OR w.spent_tokens + w.held_tokens > b.limit_tokens)) late ON true
"""


@dataclass
class Sampler:
    """Counts instants; `violations` has the first few that break a promise."""

    url: str
    instants: int = 0
    by_late_truth: int = 0
    violations: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            with suppress(psycopg.Error, OSError, TimeoutError):
                await self._watch()
            await asyncio.sleep(PERIOD_S)

    async def _watch(self) -> None:
        async with asyncio.timeout(ANSWER_S_MAX):
            connection = await psycopg.AsyncConnection.connect(
                self.url, autocommit=True, connect_timeout=2, application_name="faults-sampler"
            )
        try:
            while True:
                async with asyncio.timeout(ANSWER_S_MAX):
                    rows = await (await connection.execute(QUERY)).fetchall()
                self.instants += 1
                for row in rows:
                    self._look(*row)
                await asyncio.sleep(PERIOD_S)
        finally:
            await connection.close()

    def _look(self, window: int, *figures: Any) -> None:
        limit, limit_tokens, spent, held, spent_tokens, held_tokens = figures[:6]
        holds, holds_tokens, late, late_tokens = figures[6:]
        self._compare(f"window {window} in money", limit, spent + held, late)
        self._compare(
            f"window {window} in tokens", limit_tokens, spent_tokens + held_tokens, late_tokens
        )
        if (held, held_tokens) != (holds, holds_tokens):
            self._violated(f"window {window} holds {held}, its holds are {holds}")

    def _compare(self, what: str, limit: int | None, used: int, late: int) -> None:
        if limit is None or used <= limit:
            return
        if used - late <= limit:
            self.by_late_truth += 1
        else:
            self._violated(f"{what}: {used} of {limit}, {late} of it by late truths")

    def _violated(self, what: str) -> None:
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(what)
