"""Migrations that move rows keep every one of them, on a database of its own that had them before."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from gateway.request_ids import new_request_id
from tests import factories
from tests.door import ROOT

# Before price lists, the ledger's months, the period of a record, and events.
BEFORE = "0009_windows_open_with_their_budget"
USAGE_ROWS = 50

# Two currencies; of one model two versions.
ENTER = """
INSERT INTO tenants_organization (is_active, name, slug, timezone, currency, allowed_models, created_at)
VALUES (true, 'Acme', 'acme', 'Asia/Taipei', 'TWD', '{}', now());
INSERT INTO billing_price (model_name, currency, text_in_micro, image_in_micro, cached_in_micro, out_micro,
                           request_micro, effective_from, created_at)
VALUES ('vlm', 'TWD', 1, 2, 3, 4, 5, '2026-01-01Z', '2026-01-02Z'),
       ('vlm', 'TWD', 6, 7, 8, 9, 10, '2026-02-01Z', now()),
       ('ocr', 'TWD', 11, 12, 13, 14, 0, '2026-01-01Z', now()), ('vlm', 'USD', 1, 1, 1, 1, 0, '2026-01-01Z', now());
INSERT INTO billing_budget (name, period, limit_micro, alert_percents, is_active, created_at, organization_id)
VALUES ('pilot', 'life', 1000, '{50,80}', true, now(), 1);
"""
BOOK = """
INSERT INTO billing_usagerecord (
    request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at, tokens_in_text,
    tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico, status, usage_source, counted_prompt,
    upstream_id, canvases, streamed, window_ids, finished_at)
VALUES (%s, 1, 1, 1, 'vlm', 'b', 1, %s, %s, 2, 3, 4, 5, 6, 'ok', 'upstream', 7, 'x', '{}', true, '{8}', now())
"""
# One alert went out by both ways, one by mail failed, one is on its way, one was for nobody.
ALERT = """
WITH raised AS (
    INSERT INTO billing_alert (kind, threshold_percent, spent_pico, spent_tokens, limit_micro, request_id, overage_pico,
                               raised_at, budget_id, organization_id, window_id)
    SELECT kind, percent, 5, 6, 1000, request_id, pico, '2026-03-01Z', 1, 1, (SELECT min(id) FROM billing_budgetwindow)
    FROM (VALUES ('threshold', 50, NULL::uuid, NULL::bigint), ('threshold', 80, NULL, NULL),
                 ('threshold', 90, NULL, NULL), ('overage', NULL, gen_random_uuid(), 7))
        alert (kind, percent, request_id, pico)
    RETURNING id, threshold_percent)
INSERT INTO billing_alertdelivery (medium, attempts, next_attempt_at, delivered_at, last_error, alert_id)
SELECT medium, attempts, next_at::timestamptz, delivered_at::timestamptz, error, id
FROM raised JOIN (VALUES (50, 'email', 1, NULL, '2026-03-02Z', ''), (50, 'webhook', 2, NULL, '2026-03-03Z', ''),
                         (80, 'email', 10, NULL, NULL, 'refused'), (90, 'webhook', 3, '2026-03-04Z', NULL, 'timed out'))
    delivery (percent, medium, attempts, next_at, delivered_at, error) ON percent = threshold_percent
"""

PRICES = """
SELECT id, model_name, currency, text_in_micro, image_in_micro, cached_in_micro, out_micro, request_micro,
       effective_from, created_at FROM billing_price ORDER BY id
"""
USAGE = """
SELECT request_id, received_at, tokens_in_text, window_ids, recorded_at, held_at FROM billing_usagerecord ORDER BY 1
"""
MISPLACED = """
SELECT tableoid::regclass::text, received_at, billed_at FROM billing_usagerecord
WHERE billed_at <> received_at OR tableoid::regclass::text <>
      to_char(received_at AT TIME ZONE 'UTC', '"billing_usagerecord_y"YYYY"m"MM')
"""
TOLD = """
SELECT a.id, 'budget.' || a.kind, a.organization_id, a.raised_at, d.medium, d.attempts, d.next_attempt_at,
       d.delivered_at, d.last_error
FROM billing_alert a LEFT JOIN billing_alertdelivery d ON d.alert_id = a.id ORDER BY a.id, d.medium
"""
EVENTS = """
SELECT e.alert_id, e.type, e.organization_id, e.happened_at, d.medium, d.attempts, d.next_attempt_at,
       d.delivered_at, d.last_error
FROM billing_event e LEFT JOIN billing_delivery d ON d.event_id = e.id ORDER BY e.alert_id, d.medium
"""


class Converted:
    """A database after all migrations, and the rows as they were before these."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.migrate("billing", BEFORE)
        self.write(ENTER)
        self.write(ALERT)
        now = datetime.now(UTC)
        for days in range(USAGE_ROWS):
            at = now - timedelta(days=days)
            self.write(BOOK, id_of(at), at, days)
        self.prices, self.usage, self.told = map(self.rows, (PRICES, USAGE, TOLD))
        self.migrate()

    def migrate(self, *target: str) -> None:
        command = [sys.executable, "manage.py", "migrate", "--verbosity=0", *target]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"DATABASE_URL": self.url}, check=True)

    def write(self, statement: str, *values: Any) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(statement.encode(), values or None)

    def rows(self, statement: str) -> list[Any]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(statement.encode()).fetchall()


def id_of(at: datetime) -> UUID:
    """Return a request's id of that time."""
    return UUID(int=new_request_id().int % 2**80 + (int(at.timestamp() * 1000) << 80))


@pytest.fixture(scope="module")
def converted() -> Iterator[Converted]:
    """A new database, beside the one that the tests run on."""
    given = os.environ["DATABASE_URL"]
    name = factories.unique("conversion").replace("-", "_")
    with psycopg.connect(given, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            whole, _, query = given.partition("?")
            yield Converted(f"{whole.rsplit('/', 1)[0]}/{name}{'?' + query if query else ''}")
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def test_every_price_is_on_the_default_list_of_its_currency(converted: Converted) -> None:
    assert len(converted.prices) == 4
    assert converted.rows(PRICES) == converted.prices
    lists = converted.rows(
        "SELECT slug, l.currency, is_default, count(*) FROM billing_pricelist l JOIN billing_price p "
        "ON p.price_list_id = l.id AND p.currency = l.currency GROUP BY l.id ORDER BY slug"
    )
    assert lists == [("standard-twd", "TWD", True, 3), ("standard-usd", "USD", True, 1)]


def test_prices_are_append_only_again(converted: Converted) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="append-only"):
        converted.write("UPDATE billing_price SET out_micro = 0")


def test_every_record_is_in_the_partition_of_its_month(converted: Converted) -> None:
    assert len(converted.usage) == USAGE_ROWS
    assert converted.rows(USAGE) == converted.usage
    assert converted.rows(MISPLACED) == []
    with pytest.raises(psycopg.errors.CheckViolation, match="append-only"):
        converted.write("UPDATE billing_usagerecord SET amount_pico = 0")


def test_every_alert_is_an_event_with_its_deliveries(converted: Converted) -> None:
    assert len(converted.told) == 5
    assert converted.rows(EVENTS) == converted.told


def test_what_was_to_be_delivered_still_is(converted: Converted) -> None:
    due = "SELECT medium, attempts FROM billing_delivery WHERE next_attempt_at IS NOT NULL"

    assert converted.rows(due) == [("webhook", 3)]
