import pytest
from django.contrib.auth.models import User
from django.db import connection, connections, transaction

from tenants import revisions
from tenants.models import ApiKey, Organization, Team
from tests.tenants.conftest import NOON, Mint

pytestmark = pytest.mark.usefixtures("empty_database")


def principals() -> int:
    return revisions.read([revisions.PRINCIPALS])[revisions.PRINCIPALS]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE tenants_organization SET is_active = false",
        "UPDATE tenants_team SET is_active = false",
        "UPDATE tenants_apikey SET revoked_at = now()",
        "INSERT INTO tenants_organization"
        " (slug, name, timezone, currency, allowed_models, is_active, created_at)"
        " VALUES ('new', 'New', 'UTC', 'USD', '{}', true, now())",
        "INSERT INTO tenants_team (organization_id, slug, name, is_active, created_at)"
        " SELECT DISTINCT organization_id, 'new', 'New', true, now() FROM tenants_team",
        "DELETE FROM tenants_apikey",
        "MERGE INTO tenants_apikey USING (VALUES (1)) AS one ON true WHEN MATCHED THEN DELETE",
    ],
)
def test_every_change_in_sql_moves_the_principals(mint: Mint, statement: str) -> None:
    mint()
    before = principals()

    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute(statement)

    assert principals() > before


def test_every_verb_moves_the_principals(mint: Mint, team: Team) -> None:
    seen = [principals()]

    for change in (
        mint,
        lambda: team.keys.get().revoke(by="console:test", at=NOON),
        lambda: team.suspend(by="console:test", at=NOON),
        lambda: team.organization.suspend(by="console:test", at=NOON),
        lambda: Organization.objects.create(slug="new", name="New"),
        lambda: team.keys.all().delete(),
        lambda: team.delete(),
    ):
        change()
        seen.append(principals())

    assert seen == sorted(set(seen))


def test_nobody_sees_the_number_before_the_change(team: Team) -> None:
    reader = connections["default"].copy()
    try:
        with reader.cursor() as cursor:
            cursor.execute("SELECT number FROM tenants_revision WHERE name = 'principals'")
            committed = cursor.fetchone() or (0,)
    finally:
        reader.close()

    assert principals() > committed[0]


def test_what_is_rolled_back_did_not_happen(team: Team) -> None:
    before = principals()

    with transaction.atomic():
        team.suspend(by="console:test", at=NOON)
        transaction.set_rollback(True)

    assert principals() == before


def test_reading_and_other_tables_move_nothing(admin_user: User, team: Team) -> None:
    before = principals()

    team.organization.memberships.create(user=admin_user, role="owner")
    list(ApiKey.objects.select_related("team"))

    assert principals() == before


def test_another_app_can_watch_its_own_table(team: Team) -> None:
    forward, backward = revisions.trigger_sql("lamp", "lamps")
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE lamp (lit boolean)")
        cursor.execute(forward)
        before = revisions.read(["lamps", "principals"])

        cursor.execute("INSERT INTO lamp VALUES (true)")
        cursor.execute("UPDATE lamp SET lit = false")
        assert revisions.read(["lamps", "principals"]) == {**before, "lamps": 2}

        cursor.execute(backward)
        cursor.execute("DELETE FROM lamp")
        assert revisions.read(["lamps"]) == {"lamps": 2}


def test_a_table_or_name_that_would_need_quoting_is_refused() -> None:
    for table, name in [("Lamp", "lamps"), ("lamp; DROP", "lamps"), ("lamp", "lamp's")]:
        with pytest.raises(AssertionError):
            revisions.trigger_sql(table, name)
