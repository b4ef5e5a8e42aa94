"""How budgets stand now: the open window of each, with what is spent, held and left in it."""

from collections.abc import Collection

from django.db import connection
from django.db.models.functions import Now

from billing.budgets import Budget, BudgetWindow

OPEN = """
SELECT billing_open_windows(%s::bigint[], %s::bigint[], %s::bigint[], clock_timestamp())
"""


def open_windows(budgets: Collection[Budget]) -> dict[int, BudgetWindow]:
    """Return the open window of each budget, by the budget's id; one that is inactive may have none.

    A window that nobody has spent in is opened first, by the function that books: what is shown is then
    what is enforced, usage from before the budget stood included.
    """
    if not budgets:
        return {}
    _open(budgets)
    at = Now()
    windows = BudgetWindow.objects.filter(budget__in=budgets, starts_at__lte=at)
    windows = windows.exclude(ends_at__lte=at).select_related("budget").order_by("starts_at")
    return {window.budget_id: window for window in windows}


def _open(budgets: Collection[Budget]) -> None:
    owners = (
        {budget.organization_id for budget in budgets},
        {budget.team_id for budget in budgets if budget.team_id},
        {budget.key_id for budget in budgets if budget.key_id},
    )
    with connection.cursor() as cursor:
        cursor.execute(OPEN, [sorted(ids) for ids in owners])
