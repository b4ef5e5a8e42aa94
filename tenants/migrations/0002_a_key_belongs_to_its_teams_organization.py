from django.db import migrations


class Migration(migrations.Migration):
    dependencies = [("tenants", "0001_organizations_teams_keys_audit")]

    operations = [
        migrations.RunSQL(
            """
            ALTER TABLE tenants_apikey
                ADD CONSTRAINT key_team_is_of_its_organization
                FOREIGN KEY (team_id, organization_id) REFERENCES tenants_team (id, organization_id)
            """,
            "ALTER TABLE tenants_apikey DROP CONSTRAINT key_team_is_of_its_organization",
        )
    ]
