"""Whether an organization's requests go on while its limits cannot be kept in one place."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("tenants", "0006_limits")]

    operations = [
        migrations.AddField(
            model_name="organization",
            name="limits_fail_closed",
            field=models.BooleanField(
                db_default=False,
                default=False,
                help_text="Refuse requests under limits while Redis is away, rather than let each gateway process keep "
                "its share of them.",
            ),
        ),
    ]
