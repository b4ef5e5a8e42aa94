"""Seals: what the ledger was when an invoice was issued. And the audit trail knows the hash of each PDF that was drawn."""

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

# Sealed while the invoice is still a draft, in the transaction that issues it.
FREEZE = """
CREATE FUNCTION billing_keep_seals() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM sealed s JOIN billing_invoice i ON i.id = s.invoice_id WHERE i.status <> 'draft') THEN
        RAISE EXCEPTION 'the seals of an issued invoice do not change' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER kept AFTER INSERT ON billing_usageseal REFERENCING NEW TABLE AS sealed
    FOR EACH STATEMENT EXECUTE FUNCTION billing_keep_seals();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_usageseal
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""
THAW = """
DROP TRIGGER append_only ON billing_usageseal; DROP TRIGGER kept ON billing_usageseal;
DROP FUNCTION billing_keep_seals();
"""

# Ids and digests are random: there is nothing to compress.
UNCOMPRESSED = """
ALTER TABLE billing_usageseal ALTER COLUMN request_ids SET STORAGE EXTERNAL,
                              ALTER COLUMN digests SET STORAGE EXTERNAL
"""

# Of the PDFs that were drawn before the audit trail was told.
DRAWN = """
INSERT INTO tenants_auditentry (organization_id, at, actor, action, subject_type, subject_id, subject, detail)
SELECT i.organization_id, d.drawn_at, 'tessera', 'invoice.draw', 'billing.invoice', i.id::text, i.number,
       jsonb_build_object('sha256', d.sha256, 'drawn_by', d.drawn_by)
FROM billing_invoicedocument d JOIN billing_invoice i ON i.id = d.invoice_id
WHERE NOT EXISTS (
    SELECT FROM tenants_auditentry e
    WHERE e.action = 'invoice.draw' AND e.subject_type = 'billing.invoice' AND e.subject_id = i.id::text)
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0023_closing_is_seen'),
        ('tenants', '0008_an_organization_keeps_its_currency'),
    ]

    operations = [
        migrations.CreateModel(
            name='UsageSeal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('day', models.DateField(help_text='Of `billed_at`, in UTC.')),
                ('team_id', models.BigIntegerField()),
                ('key_id', models.BigIntegerField()),
                ('model_name', models.CharField(max_length=200)),
                ('price_id', models.BigIntegerField()),
                ('records', models.BigIntegerField()),
                ('tokens_in_text', models.BigIntegerField()),
                ('tokens_in_image', models.BigIntegerField()),
                ('tokens_in_cached', models.BigIntegerField()),
                ('tokens_out', models.BigIntegerField()),
                ('amount_pico', models.DecimalField(decimal_places=0, max_digits=30)),
                ('request_ids', django.contrib.postgres.fields.ArrayField(base_field=models.UUIDField(), size=None)),
                ('digests', django.contrib.postgres.fields.ArrayField(base_field=models.BigIntegerField(), help_text='In the order of `request_ids`.', size=None)),
                ('invoice', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='seals', to='billing.invoice')),
            ],
            options={
                'constraints': [models.UniqueConstraint(fields=('invoice', 'day', 'team_id', 'key_id', 'model_name', 'price_id'), name='usage_seal_once')],
            },
        ),
        migrations.RunSQL(FREEZE, THAW),
        migrations.RunSQL(UNCOMPRESSED, migrations.RunSQL.noop),
        migrations.RunSQL(DRAWN, migrations.RunSQL.noop),
    ]
