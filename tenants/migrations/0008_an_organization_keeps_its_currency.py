from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("tenants", "0007_limits_may_fail_closed")]

    operations = [
        # From its creation on, not from its first booking: a gateway that still knows the old currency would book in
        # it after the change was let through.
        migrations.RunSQL(
            """
            CREATE FUNCTION tenants_keep_currency() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                RAISE EXCEPTION 'organization % keeps its currency, %: what it used is priced in it',
                    OLD.slug, OLD.currency
                    USING ERRCODE = 'check_violation', HINT = 'Create another organization for another currency.';
            END
            $$;
            CREATE TRIGGER keep_currency AFTER UPDATE ON tenants_organization
                FOR EACH ROW WHEN (NEW.currency <> OLD.currency) EXECUTE FUNCTION tenants_keep_currency();
            """,
            """
            DROP TRIGGER keep_currency ON tenants_organization;
            DROP FUNCTION tenants_keep_currency();
            """,
        )
    ]
