"""A row for each run of the reconciliation, which nobody changes afterwards."""

import django.db.models.functions.datetime
from django.db import migrations, models

APPEND_ONLY = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_reconciliation
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0005_idempotent_requests'),
    ]

    operations = [
        migrations.CreateModel(
            name='Reconciliation',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ('drift_pico', models.DecimalField(decimal_places=0, help_text='How far all budget windows together are off, in pico-units, before any correction.', max_digits=40)),
                ('drift_tokens', models.BigIntegerField()),
                ('drained', models.BigIntegerField(help_text='Rows booked from the spools of dead processes.')),
                ('reaped', models.BigIntegerField(help_text='Holds of dead processes that were settled.')),
                ('details', models.JSONField(default=dict)),
            ],
            options={
                'ordering': ['-id'],
            },
        ),
        migrations.RunSQL(APPEND_ONLY, "DROP TRIGGER append_only ON billing_reconciliation"),
    ]
