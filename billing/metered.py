"""What a period's ledger rows come to, read from the ledger itself: the other way to what the rollups say."""

from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

from django.db import connection

from billing import rollups
from billing.periods import Period
from billing.rating import Kind, Quantity

# By team, price and kind: units, late units, images.
Sums: TypeAlias = dict[tuple[int, int, Kind], tuple[int, int, int]]

_OF_PERIOD = rollups.LEDGER.format(
    source="billing_usagerecord u",
    condition="u.organization_id = %s AND u.billed_at >= %s AND u.billed_at < %s",
)
_BY_TEAM = f"""
    SELECT team_id, price_id, is_late, sum(billed_images),
           {", ".join(f"sum({rollups.BILLED[kind]})" for kind in Kind)}
    FROM ({_OF_PERIOD}) ledger GROUP BY team_id, price_id, is_late ORDER BY team_id, price_id, is_late
"""


def quantities(organization_id: int, period: Period) -> list[Quantity]:
    """Return what is billed of the period, as rating takes it. Reads the ledger's rows, each of them."""
    with connection.cursor() as cursor:
        cursor.execute(_BY_TEAM, [organization_id, period.start, period.end])
        rows = cursor.fetchall()
    found = []
    for team_id, price_id, is_late, images, *units in rows:
        for kind, count in zip(Kind, map(int, units), strict=True):
            if count:
                late, seen = count if is_late else 0, int(images) if kind is Kind.IMAGE_IN else 0
                found.append(Quantity(team_id, price_id, kind, count, late, seen))
    return found


def rollups_agree(organization_id: int, period: Period) -> bool:
    """Say whether the rollups of the period are what its ledger rows come to."""
    rolled = rollups.quantities(organization_id, period)
    return sums(rolled) == sums(quantities(organization_id, period))


def sums(usage: Iterable[Quantity]) -> Sums:
    """Return the quantities in a form that compares, however they are split."""
    units: Counter[tuple[int, int, Kind]] = Counter()
    late, images = units.copy(), units.copy()
    for each in usage:
        key = (each.team_id, each.price_id, each.kind)
        units[key] += each.units
        late[key] += each.late_units
        images[key] += each.images
    return {key: (units[key], late[key], images[key]) for key in units}
