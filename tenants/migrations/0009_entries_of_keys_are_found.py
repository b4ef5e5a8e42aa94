"""The audit entries of keys by their time, for the events that organizations are told of them."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tenants', '0008_an_organization_keeps_its_currency'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='auditentry',
            index=models.Index(fields=['at'], condition=models.Q(('action__in', ['key.create', 'key.revoke'])), name='audit_of_keys'),
        ),
    ]
