"""An index of the few records that are adjustments: the books look for them in every period that is issued."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("billing", "0021_what_is_issued_stays")]

    operations = [
        migrations.AddIndex(
            model_name="usagerecord",
            index=models.Index(
                fields=["organization", "billed_at"],
                condition=models.Q(kind="adjustment"),
                name="usage_adjustments",
            ),
        ),
    ]
