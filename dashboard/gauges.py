"""Budgets as bars: what is spent, held and left of each, now."""

from collections.abc import Sequence
from dataclasses import dataclass

from billing import standing
from billing.budgets import Budget, BudgetWindow
from billing.rating import PICO_PER_MICRO
from dashboard.figures import percent
from tenants.models import Organization

BUDGETS_MAX = 200


@dataclass(frozen=True, slots=True)
class Gauge:
    """One limit of a budget, in pico-units or in tokens."""

    is_money: bool
    limit: int
    spent: int
    held: int

    @property
    def left(self) -> int:
        return max(0, self.limit - self.spent - self.held)

    @property
    def over(self) -> int:
        """By how much it is passed: a request may cost more than it had set aside."""
        return max(0, self.spent + self.held - self.limit)

    @property
    def spent_percent(self) -> int:
        return max(0, self.spent) * 100 // self.limit if self.limit else 100

    @property
    def spent_width(self) -> str:
        return percent(self.spent, self._whole)

    @property
    def held_width(self) -> str:
        return percent(self.held, self._whole)

    @property
    def limit_at(self) -> str:
        """Where the limit is in the bar: at its end, unless it is passed."""
        return percent(self.limit, self._whole)

    @property
    def _whole(self) -> int:
        return max(self.limit, self.spent + self.held)


@dataclass(frozen=True, slots=True)
class Standing:
    budget: Budget
    window: BudgetWindow | None
    gauges: Sequence[Gauge]


def of_organization(organization: Organization) -> list[Standing]:
    """Return its budgets, the widest first, at most BUDGETS_MAX."""
    budgets = organization.budgets.select_related("organization", "team", "key")
    rows = sorted(
        budgets.order_by("-is_active", "pk")[:BUDGETS_MAX],
        key=lambda row: (not row.is_active, row.team_id is not None, row.key_id is not None),
    )
    windows = standing.open_windows([budget for budget in rows if budget.is_active])
    return [_standing(budget, windows.get(budget.pk)) for budget in rows]


def _standing(budget: Budget, window: BudgetWindow | None) -> Standing:
    gauges = []
    if window and budget.limit_micro is not None:
        limit = budget.limit_micro * PICO_PER_MICRO
        gauges.append(Gauge(True, limit, int(window.spent_pico), int(window.held_pico)))
    if window and budget.limit_tokens is not None:
        gauges.append(Gauge(False, budget.limit_tokens, window.spent_tokens, window.held_tokens))
    return Standing(budget, window, gauges)
