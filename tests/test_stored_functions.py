"""What PostgreSQL runs for us, to be read in one place: `<app>/sql/` is what the migrations come to.

Migrations only add to each other, so none of them shows a function as it is today. `make sql` writes the files anew.
"""

import os
import re
from pathlib import Path

import pytest
from django.db import connection

ROOT = Path(__file__).parents[1]
APPS = ("billing", "tenants")

# Each function with the triggers that call it; a partition's trigger is its table's.
STORED = """
    SELECT p.proname, pg_get_functiondef(p.oid), coalesce(string_agg(
               pg_get_triggerdef(t.oid, true), E'\\n' ORDER BY t.tgrelid::regclass::text, t.tgname
           ) FILTER (WHERE NOT r.relispartition), '')
    FROM pg_proc p
    LEFT JOIN pg_trigger t ON t.tgfoid = p.oid LEFT JOIN pg_class r ON r.oid = t.tgrelid
    WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE %s AND p.prokind = 'f'
    GROUP BY p.oid ORDER BY p.proname
"""


def stored(app: str) -> dict[str, str]:
    """Return the app's functions as files are to have them: name of the file, its text."""
    with connection.cursor() as cursor:
        cursor.execute(STORED, [f"{app}\\_%"])
        return {
            name.removeprefix(f"{app}_") + ".sql": text_of(function, triggers)
            for name, function, triggers in cursor.fetchall()
        }


def text_of(function: str, triggers: str) -> str:
    called_by = "".join(f"\n{line};" for line in triggers.splitlines())
    text = f"{function.rstrip()};\n" + (f"{called_by}\n" if called_by else "")
    return re.sub(r"[ \t]+$", "", text, flags=re.M)


@pytest.mark.django_db
@pytest.mark.parametrize("app", APPS)
def test_the_files_are_what_the_database_runs(app: str) -> None:
    folder = ROOT / app / "sql"
    in_database = stored(app)
    if os.environ.get("WRITE_SQL"):
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.sql"):
            path.unlink()
        for name, text in in_database.items():
            (folder / name).write_text(text)

    in_files = {path.name: path.read_text() for path in folder.glob("*.sql")}

    assert in_files == in_database, "make sql writes them anew"
