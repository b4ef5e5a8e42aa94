"""Every change of catalog or prices moves the revision that the data plane polls."""

from django.db import migrations

from tenants.revisions import trigger_sql

TABLES = ("gateway_backend", "gateway_model", "gateway_route", "billing_price")


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0001_catalog"),
        ("billing", "0002_booking_functions"),
        ("tenants", "0004_revision_of_principals"),
    ]

    operations = [migrations.RunSQL(*trigger_sql(table, "catalog")) for table in TABLES]
