"""Seals: what the ledger was when an invoice was issued, record by record, so that what is changed later has a name.

For each day (in UTC), team, key, model and price they keep the sums, and the id and a digest of each usage record: 24
bytes a record. They are written in the transaction that issues, frozen by triggers, and their SHA-256 is part of the
invoice's snapshot: who changes them changes the hash that the next invoice names.
"""

from dataclasses import dataclass
from datetime import date
from typing import Any
from uuid import UUID

from django.contrib.postgres.fields import ArrayField
from django.db import connection, models

from billing.invoicing.invoices import Invoice

KEYS = "day, team_id, key_id, model_name, price_id"
SUMS = "records, tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico"
ARRAYS = "request_ids, digests"


class UsageSeal(models.Model):
    """What an invoice was made of on one day by one key, of one model at one price. Its ids are no references."""

    invoice = models.ForeignKey(Invoice, on_delete=models.PROTECT, related_name="seals")
    day = models.DateField(help_text="Of `billed_at`, in UTC.")
    team_id = models.BigIntegerField()
    key_id = models.BigIntegerField()
    model_name = models.CharField(max_length=200)
    price_id = models.BigIntegerField()
    records = models.BigIntegerField()
    tokens_in_text = models.BigIntegerField()
    tokens_in_image = models.BigIntegerField()
    tokens_in_cached = models.BigIntegerField()
    tokens_out = models.BigIntegerField()
    amount_pico = models.DecimalField(max_digits=30, decimal_places=0)
    request_ids = ArrayField(models.UUIDField())
    digests = ArrayField(models.BigIntegerField(), help_text="In the order of `request_ids`.")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["invoice", "day", "team_id", "key_id", "model_name", "price_id"],
                name="usage_seal_once",
            )
        ]

    def __str__(self) -> str:
        return f"seal of {self.invoice}, {self.day}"


# The first 64 bits of the SHA-256 of all that is billed of a record. A row's text has no two readings; of an instant it
# would have, by the session's time zone.
_DIGEST = """
    ('x' || left(encode(sha256(convert_to(ROW(
        u.request_id, u.kind, u.adjusts_id, u.organization_id, u.team_id, u.key_id, u.model_name, u.price_id,
        u.tokens_in_text, u.tokens_in_image, u.tokens_in_cached, u.tokens_out, u.canvases, u.amount_pico, u.policy,
        u.status, u.usage_source, extract(epoch FROM u.received_at), extract(epoch FROM u.billed_at)
    )::text, 'UTF8')), 'hex'), 16))::bit(64)::bigint
"""
_SEALED = f"""
    SELECT (u.billed_at AT TIME ZONE 'UTC')::date AS day, u.team_id, u.key_id, u.model_name, u.price_id,
           count(*) AS records, sum(u.tokens_in_text) AS tokens_in_text, sum(u.tokens_in_image) AS tokens_in_image,
           sum(u.tokens_in_cached) AS tokens_in_cached, sum(u.tokens_out) AS tokens_out,
           sum(u.amount_pico) AS amount_pico,
           array_agg(u.request_id ORDER BY u.request_id) AS request_ids,
           array_agg({_DIGEST} ORDER BY u.request_id) AS digests
    FROM billing_usagerecord u
    WHERE u.organization_id = %(organization)s AND u.billed_at >= %(start)s AND u.billed_at < %(end)s
    GROUP BY 1, 2, 3, 4, 5
"""
_WRITE = f"""
    INSERT INTO billing_usageseal (invoice_id, {KEYS}, {SUMS}, {ARRAYS})
    SELECT %(invoice)s, {KEYS}, {SUMS}, {ARRAYS} FROM ({_SEALED}) sealed
"""
# Of the hashes of the rows, so that nothing that is hashed at once is longer than one day of one key.
_SHA256 = """
    SELECT encode(sha256(coalesce(string_agg(sha256(convert_to(ROW(
        s.day - DATE 'epoch', s.team_id, s.key_id, s.model_name, s.price_id, s.records, s.tokens_in_text,
        s.tokens_in_image, s.tokens_in_cached, s.tokens_out, s.amount_pico, s.request_ids, s.digests
    )::text, 'UTF8')), ''::bytea ORDER BY s.day, s.team_id, s.key_id, s.model_name COLLATE "C", s.price_id),
    ''::bytea)), 'hex')
    FROM billing_usageseal s WHERE s.invoice_id = %(invoice)s
"""
_DIFFERING = f"""
    WITH is_now AS MATERIALIZED ({_SEALED}),
    differing AS MATERIALIZED (
        SELECT {KEYS}, {{sums}}, w.request_ids AS were_ids, w.digests AS were_digests,
               n.request_ids AS ids, n.digests AS digests
        FROM (SELECT * FROM billing_usageseal WHERE invoice_id = %(invoice)s) w FULL JOIN is_now n USING ({KEYS})
        WHERE (w.request_ids, w.digests) IS DISTINCT FROM (n.request_ids, n.digests))
""".format(
    sums=", ".join(
        f"coalesce(n.{name}, 0) - coalesce(w.{name}, 0) AS {name}" for name in SUMS.split(", ")
    )
)
_DRIFTS = f"""{_DIFFERING}
    SELECT day, team_id, key_id, model_name, {SUMS} FROM differing ORDER BY {KEYS} LIMIT %(found_max)s
"""
_CHANGES = f"""{_DIFFERING},
    were AS (SELECT * FROM differing CROSS JOIN LATERAL unnest(were_ids, were_digests) r (id, digest)),
    are AS (SELECT * FROM differing d CROSS JOIN LATERAL unnest(d.ids, d.digests) r (id, digest))
    SELECT id, w.day, w.team_id, w.key_id, w.model_name, n.day, n.team_id, n.key_id, n.model_name
    FROM were w FULL JOIN are n USING (id)
    WHERE w.digest IS DISTINCT FROM n.digest ORDER BY id LIMIT %(found_max)s
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a usage record is billed: on which day (in UTC), of which team and key, for which model."""

    day: date
    team_id: int
    key_id: int
    model_name: str


@dataclass(frozen=True, slots=True)
class Drift:
    """By how much the ledger has more of a place than when it was sealed; below zero, less. `sums` by their names."""

    place: Place
    sums: dict[str, int]


@dataclass(frozen=True, slots=True)
class Change:
    """A usage record that is not what it was when it was sealed: None where it was not, or is not any more."""

    request_id: UUID
    was: Place | None
    is_now: Place | None


def seal(invoice: Invoice) -> str:
    """Write down what the ledger has of the draft's period, once nothing can be booked in it any more: its SHA-256."""
    with connection.cursor() as cursor:
        cursor.execute(_WRITE, _values(invoice))
    return sha256(invoice)


def sha256(invoice: Invoice) -> str:
    """Return the SHA-256 of the invoice's seals, as they are kept now."""
    ((digest,),) = _rows(_SHA256, _values(invoice))
    return str(digest)


def drifts(invoice: Invoice, found_max: int) -> list[Drift]:
    """Return where the ledger is not what was sealed, the first day first."""
    rows = _rows(_DRIFTS, _values(invoice) | {"found_max": found_max})
    names = SUMS.split(", ")
    return [
        Drift(Place(*row[:4]), dict(zip(names, map(int, row[4:]), strict=True))) for row in rows
    ]


def changes(invoice: Invoice, found_max: int) -> list[Change]:
    """Return the usage records that are gone, are new, were moved or changed since they were sealed."""
    rows = _rows(_CHANGES, _values(invoice) | {"found_max": found_max})
    return [Change(row[0], _place(row[1:5]), _place(row[5:])) for row in rows]


def _place(row: tuple[Any, ...]) -> Place | None:
    return None if row[0] is None else Place(*row)


def _values(invoice: Invoice) -> dict[str, Any]:
    return {
        "invoice": invoice.pk,
        "organization": invoice.organization_id,
        "start": invoice.period_start,
        "end": invoice.period_end,
    }


def _rows(statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
    return rows
