"""When the closing of a period was committed, so that an invoice waits for all that began before."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0022_adjustments_are_found'),
    ]

    operations = [
        migrations.AddField(
            model_name='invoice',
            name='closing_seen_at',
            field=models.DateTimeField(help_text="When the closing was committed, by the database's clock: who began before may not know of it.", null=True),
        ),
    ]
