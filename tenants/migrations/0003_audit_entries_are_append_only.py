from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("tenants", "0002_a_key_belongs_to_its_teams_organization")]

    operations = [
        # A statement trigger also stops TRUNCATE, and statements that would match no row: a program
        # that tries is wrong on the day it finds none, too.
        migrations.RunSQL(
            """
            CREATE FUNCTION tenants_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP
                    USING ERRCODE = 'restrict_violation';
            END
            $$;
            CREATE TRIGGER tenants_auditentry_append_only
                BEFORE UPDATE OR DELETE OR TRUNCATE ON tenants_auditentry
                FOR EACH STATEMENT EXECUTE FUNCTION tenants_refuse_change();
            """,
            """
            DROP TRIGGER tenants_auditentry_append_only ON tenants_auditentry;
            DROP FUNCTION tenants_refuse_change();
            """,
        )
    ]
