from django.db import migrations

from tenants.revisions import PRINCIPALS, trigger_sql


class Migration(migrations.Migration):
    dependencies = [("tenants", "0003_audit_entries_are_append_only")]

    operations = [
        migrations.RunSQL(
            """
            CREATE TABLE tenants_revision (name text PRIMARY KEY, number bigint NOT NULL);
            CREATE FUNCTION tenants_bump_revision() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                INSERT INTO tenants_revision AS revision (name, number) VALUES (TG_ARGV[0], 1)
                ON CONFLICT (name) DO UPDATE SET number = revision.number + 1;
                RETURN NULL;
            END
            $$;
            """,
            """
            DROP FUNCTION tenants_bump_revision();
            DROP TABLE tenants_revision;
            """,
        ),
        migrations.RunSQL(*trigger_sql("tenants_organization", PRINCIPALS)),
        migrations.RunSQL(*trigger_sql("tenants_team", PRINCIPALS)),
        migrations.RunSQL(*trigger_sql("tenants_apikey", PRINCIPALS)),
    ]
