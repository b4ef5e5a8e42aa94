"""The migration that cuts the ledger by month keeps every row, on a database of its own."""

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

BEFORE = "0011_price_lists_are_kept"
ROWS = 50
INSERT = """
INSERT INTO billing_usagerecord (
    request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at, tokens_in_text,
    tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico, status, usage_source, counted_prompt,
    upstream_id, canvases, streamed, window_ids, finished_at)
VALUES (%s, 1, 1, 1, 'vlm', 'b', 1, %s, %s, 2, 3, 4, 5, 6, 'ok', 'upstream', 7, 'x', '{}', true, '{8}', now())
"""

MISPLACED = """
SELECT tableoid::regclass::text, received_at, billed_at FROM billing_usagerecord
WHERE billed_at <> received_at OR tableoid::regclass::text <>
      to_char(received_at AT TIME ZONE 'UTC', '"billing_usagerecord_y"YYYY"m"MM')
"""


@pytest.fixture
def url() -> Iterator[str]:
    """The URL of a new database, beside the one that the tests run on."""
    given = os.environ["DATABASE_URL"]
    name = factories.unique("conversion").replace("-", "_")
    with psycopg.connect(given, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            whole, _, query = given.partition("?")
            yield f"{whole.rsplit('/', 1)[0]}/{name}{'?' + query if query else ''}"
        finally:
            drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
            connection.execute(drop)


def migrate(url: str, *words: str) -> None:
    command = [sys.executable, "manage.py", "migrate", "--verbosity=0", *words]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"DATABASE_URL": url}, check=True)


def rows(url: str) -> list[Any]:
    columns = "request_id, received_at, tokens_in_text, window_ids, recorded_at, held_at"
    with psycopg.connect(url) as connection:
        return connection.execute(
            f"SELECT {columns} FROM billing_usagerecord ORDER BY 1"
        ).fetchall()


def test_every_row_is_in_the_partition_of_its_month(url: str) -> None:
    migrate(url, "billing", BEFORE)
    now = datetime.now(UTC)
    with psycopg.connect(url) as connection:
        for days in range(ROWS):
            at = now - timedelta(days=days)
            milliseconds = int(at.timestamp() * 1000)
            request_id = UUID(int=new_request_id().int % 2**80 + (milliseconds << 80))
            connection.execute(INSERT, [request_id, at, days])
    before = rows(url)

    migrate(url)

    assert len(before) == ROWS
    assert rows(url) == before
    with psycopg.connect(url) as connection:
        misplaced = connection.execute(MISPLACED).fetchall()
        assert misplaced == []
        with pytest.raises(psycopg.errors.CheckViolation, match="append-only"):
            connection.execute("UPDATE billing_usagerecord SET amount_pico = 0")
