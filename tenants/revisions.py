"""Numbers that move when tables change, so that caches in other processes know when to forget.

A statement-level trigger bumps the named row in the same transaction as the change, whatever made
the change: the ORM, the admin, or psql. A reader never sees a new number before the new rows.

The price: transactions that write to tables of one name wait for each other, from the first write
on. That is fit for keys and catalogs, which people edit; it is not for what a request writes.
"""

import re
from collections.abc import Collection

from django.db import connection

PRINCIPALS = "principals"

IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,46}")  # leaves room for "_revision" in 63 bytes


def read(names: Collection[str]) -> dict[str, int]:
    """Return each name's number, in one query; 0 for a name that nothing has bumped yet."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name, number FROM tenants_revision WHERE name = ANY(%s)", [list(names)]
        )
        numbers = dict(cursor.fetchall())
    return {name: numbers.get(name, 0) for name in names}


def trigger_sql(table: str, name: str) -> tuple[str, str]:
    """Return SQL that makes every change of `table` bump `name`, and SQL that undoes it.

    For migrations, `RunSQL(*trigger_sql("gateway_route", "catalog"))`, which must depend on
    `("tenants", "0004_revision_of_principals")`.
    """
    assert IDENTIFIER.fullmatch(table), table
    assert IDENTIFIER.fullmatch(name), name
    trigger = f"{table}_revision"
    return (
        f"CREATE TRIGGER {trigger} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION tenants_bump_revision('{name}')",
        f"DROP TRIGGER {trigger} ON {table}",
    )
