"""What a period's ledger rows come to, read from the ledger itself: the other way to what the rollups say."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias
from uuid import UUID

from django.db import connection

from billing import books, rollups
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
    FROM ({{ledger}}) ledger GROUP BY team_id, price_id, is_late ORDER BY team_id, price_id, is_late
"""
_AS_BOOKED = _BY_TEAM.format(ledger=_OF_PERIOD)

# The version of a list that a record would have been booked at: as `prices.in_force` finds it, for each record.
_OTHER = """
    LEFT JOIN LATERAL (
        SELECT p.id FROM billing_price p JOIN billing_pricelist l ON l.id = p.price_list_id
        WHERE p.model_name = r.model_name AND p.currency = %(currency)s AND p.effective_from <= r.received_at
          AND CASE WHEN %(price_ids)s::bigint[] IS NULL THEN l.id = %(price_list)s OR l.is_default
                   ELSE p.id = ANY(%(price_ids)s) END
        ORDER BY (l.id = %(price_list)s) DESC, p.effective_from DESC LIMIT 1) other ON true
"""
_OF_RECORD = (
    "organization_id, team_id, key_id, model_name, kind, policy, adjusts_id, received_at, billed_at, canvases, "
    "tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico"
)
_CONDITION = "{0}.organization_id = %(organization)s AND {0}.billed_at >= %(start)s AND {0}.billed_at < %(end)s"
_UNDER = _BY_TEAM.format(
    ledger=rollups.LEDGER.format(
        source=f"""(
            SELECT {rollups.columns("r", _OF_RECORD)}, other.id AS price_id
            FROM billing_usagerecord r {_OTHER}) u""",
        condition=_CONDITION.format("u"),
    )
)
_UNPRICED = f"""
    SELECT r.model_name, r.received_at FROM billing_usagerecord r {_OTHER}
    WHERE {_CONDITION.format("r")} AND other.id IS NULL AND (r.policy <> 'nothing' OR r.adjusts_id IS NOT NULL)
    ORDER BY r.received_at LIMIT 1
"""

_MISRATED = f"""
    SELECT u.request_id, format('costs %%s pico-units, should be %%s', amount_pico, {books.RATED_USAGE})
    FROM billing_usagerecord u JOIN billing_price p ON p.id = u.price_id
    WHERE u.kind = 'usage' AND amount_pico <> {books.RATED_USAGE} AND u.organization_id = %(organization)s
      AND u.billed_at >= %(start)s AND u.billed_at < %(end)s
    ORDER BY u.request_id LIMIT %(records_max)s
"""
# Each sum of a rollup that the records of its quarter of an hour do not come to.
_DRIFTED = f"""
    WITH differing AS (
        SELECT {rollups.KEYS}
        FROM ({
    rollups.LEDGER.format(
        source="billing_usagerecord u",
        condition="u.organization_id = %(organization)s "
        "AND u.billed_at >= %(start)s AND u.billed_at < %(end)s",
    )
}) l
        FULL JOIN (
            SELECT * FROM billing_rollup WHERE organization_id = %(organization)s
              AND bucket >= %(start)s AND bucket < %(end)s) r USING ({rollups.KEYS})
        WHERE ({", ".join(f"l.{name}" for name in rollups.SUMS.split(", "))})
              IS DISTINCT FROM ({", ".join(f"r.{name}" for name in rollups.SUMS.split(", "))}))
    SELECT u.request_id, format('is one of those in the quarter of an hour from %%s of key %%s that were changed since '
                                'it was summed up', d.bucket, d.key_id)
    FROM differing d JOIN billing_usagerecord u ON u.organization_id = d.organization_id AND u.key_id = d.key_id
        AND u.model_name = d.model_name AND u.price_id = d.price_id
        AND u.billed_at >= d.bucket AND u.billed_at < d.bucket + interval '15 minutes'
    ORDER BY u.request_id LIMIT %(records_max)s
"""


def quantities(organization_id: int, period: Period) -> list[Quantity]:
    """Return what is billed of the period, as rating takes it. Reads the ledger's rows, each of them."""
    with connection.cursor() as cursor:
        cursor.execute(_AS_BOOKED, [organization_id, period.start, period.end])
        return _read(cursor.fetchall())


@dataclass(frozen=True, slots=True)
class Under:
    """Prices other than those booked: the versions of a list, and of the default one for what it lacks.

    With `price_ids` only these: what an invoice was rated at, whatever has been added to the list since.
    """

    price_list_id: int
    currency: str
    price_ids: frozenset[int] | None = None


def quantities_under(organization_id: int, period: Period, under: Under) -> list[Quantity]:
    """Return the same, each record at the version that was in force when it was received.

    ValueError if there was none; of given versions, what none of them prices is left out.
    """
    values: dict[str, Any] = {
        "organization": organization_id,
        "start": period.start,
        "end": period.end,
        "currency": under.currency,
        "price_list": under.price_list_id,
        "price_ids": None if under.price_ids is None else sorted(under.price_ids),
    }
    with connection.cursor() as cursor:
        if under.price_ids is None:
            cursor.execute(_UNPRICED, values)
            for model_name, at in cursor.fetchall():
                raise ValueError(f"There was no price of {model_name} on {at:%Y-%m-%d}.")
        cursor.execute(_UNDER, values)
        return _read(row for row in cursor.fetchall() if row[1] is not None)


def _read(rows: Iterable[tuple[Any, ...]]) -> list[Quantity]:
    found = []
    for team_id, price_id, is_late, images, *units in rows:
        for kind, count in zip(Kind, map(int, units), strict=True):
            if count:
                late, seen = count if is_late else 0, int(images) if kind is Kind.IMAGE_IN else 0
                found.append(Quantity(team_id, price_id, kind, count, late, seen))
    return found


@dataclass(frozen=True, slots=True)
class Suspect:
    """A usage record that does not fit, and why."""

    request_id: UUID
    what: str


def suspects(
    organization_id: int, period: Period, records_max: int, *, is_sealed: bool
) -> list[Suspect]:
    """Name usage records of the period that cost other than they should, or lie where rollup and ledger differ.

    A rollup that was made before a record was changed still knows of it; one made since then does not. It can only say
    in which quarter of an hour: where seals know the records themselves, it is not asked.
    """
    values: dict[str, Any] = {
        "organization": organization_id,
        "start": period.start,
        "end": period.end,
        "records_max": records_max,
    }
    with connection.cursor() as cursor:
        cursor.execute(_MISRATED, values)
        found = [Suspect(*row) for row in cursor.fetchall()]
        if not is_sealed:
            cursor.execute(_DRIFTED, values)
            found += [Suspect(*row) for row in cursor.fetchall()]
    return list({suspect.request_id: suspect for suspect in reversed(found)}.values())


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
