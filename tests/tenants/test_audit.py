import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction

from tenants.models import ApiKey, AuditEntry, Team
from tests.tenants.conftest import NOON, Mint

STATEMENTS = [
    "UPDATE tenants_auditentry SET actor = 'nobody'",
    "UPDATE tenants_auditentry SET actor = 'nobody' WHERE false",
    "DELETE FROM tenants_auditentry",
    "DELETE FROM ONLY tenants_auditentry WHERE id = 0",
    "TRUNCATE tenants_auditentry",
    "TRUNCATE tenants_organization CASCADE",
    "WITH gone AS (DELETE FROM tenants_auditentry RETURNING *) SELECT * FROM gone",
    "MERGE INTO tenants_auditentry USING (VALUES (1)) AS one ON true WHEN MATCHED THEN DELETE",
    "INSERT INTO tenants_auditentry SELECT * FROM tenants_auditentry"
    " ON CONFLICT (id) DO UPDATE SET actor = 'nobody'",
]


@pytest.fixture
def entry(team: Team) -> AuditEntry:
    return AuditEntry.record("team.test", team, by="console:test", at=NOON, detail={"why": "test"})


@pytest.mark.parametrize("statement", STATEMENTS)
def test_even_the_owner_cannot_change_an_entry(entry: AuditEntry, statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tableowner = current_user FROM pg_tables WHERE tablename LIKE '%audit%'"
        )
        assert cursor.fetchall() == [(True,)]

        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")  # TRUNCATE waits for no deferred check

        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            cursor.execute(statement)

    assert AuditEntry.objects.get(pk=entry.pk).actor == "console:test"


def test_the_orm_cannot_either(entry: AuditEntry) -> None:
    def save() -> None:
        entry.save(update_fields=["actor"])

    entries = AuditEntry.objects.all()
    for attempt in (save, entry.delete, entries.delete, lambda: entries.update(actor="nobody")):
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            attempt()


def test_an_entry_says_who_did_what_to_which(team: Team) -> None:
    alice = User.objects.create_user("alice")

    key, raw = ApiKey.mint(team, "laptop", by=alice, at=NOON)

    entry = team.organization.audit_entries.get()
    assert (entry.at, entry.organization, entry.action) == (NOON, team.organization, "key.create")
    assert (entry.actor, entry.actor_user_id) == ("alice", alice.pk)
    assert (entry.subject_type, entry.subject_id) == ("tenants.apikey", str(key.pk))
    assert entry.subject == f"laptop (tsr_{raw.public_id}_…{raw.last4})"


def test_an_entry_outlives_the_account_of_its_actor(team: Team) -> None:
    alice = User.objects.create_user("alice")
    team.suspend(by=alice, at=NOON)

    alice.delete()

    assert team.organization.audit_entries.get().actor == "alice"


def test_what_changed_nothing_is_not_recorded(mint: Mint) -> None:
    key, _ = mint()

    key.team.resume(by="console:test", at=NOON)
    key.revoke(by="console:test", at=NOON)
    key.revoke(by="console:test", at=NOON)

    actions = key.organization.audit_entries.order_by("id").values_list("action", flat=True)
    assert list(actions) == ["key.create", "key.revoke"]
