"""What decides an organization's prices moves the catalog's revision too."""

from django.db import migrations

from tenants.revisions import trigger_sql

# Of an account only its price list matters: closing a period, which writes it as well, must not make doors reload, nor
# wait for whoever edits the catalog.
ACCOUNTS = """
CREATE TRIGGER billing_account_revision_insert AFTER INSERT ON billing_account
    FOR EACH ROW WHEN (NEW.price_list_id IS NOT NULL) EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER billing_account_revision_update AFTER UPDATE ON billing_account
    FOR EACH ROW WHEN (NEW.price_list_id IS DISTINCT FROM OLD.price_list_id)
    EXECUTE FUNCTION tenants_bump_revision('catalog');
CREATE TRIGGER billing_account_revision_delete AFTER DELETE ON billing_account
    FOR EACH ROW WHEN (OLD.price_list_id IS NOT NULL) EXECUTE FUNCTION tenants_bump_revision('catalog');
"""
UNDO_ACCOUNTS = """
DROP TRIGGER billing_account_revision_insert ON billing_account;
DROP TRIGGER billing_account_revision_update ON billing_account;
DROP TRIGGER billing_account_revision_delete ON billing_account;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0002_revision_of_catalog"),
        ("billing", "0011_price_lists_are_kept"),
    ]

    operations = [
        migrations.RunSQL(*trigger_sql("billing_pricelist", "catalog")),
        migrations.RunSQL(ACCOUNTS, UNDO_ACCOUNTS),
    ]
