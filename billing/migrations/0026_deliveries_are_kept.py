"""A delivery that is sent again is another one, key events are read from a mark on, and a channel is called one."""

import django.db.models.deletion
from django.db import migrations, models

# What people may do stays theirs under the new name.
PERMISSIONS = """
    UPDATE auth_permission SET codename = replace(codename, '_{0}', '_{1}'), name = replace(name, '{2}', '{3}')
    WHERE codename IN ('add_{0}', 'change_{0}', 'delete_{0}', 'view_{0}')
      AND content_type_id IN (SELECT id FROM django_content_type WHERE app_label = 'billing')
"""


class Migration(migrations.Migration):

    dependencies = [
        ('auth', '0012_alter_user_first_name_max_length'),
        ('billing', '0025_rated_under_another_list'),
        ('contenttypes', '0002_remove_content_type_name'),
        ('tenants', '0009_entries_of_keys_are_found'),
    ]

    operations = [
        migrations.RenameModel('AlertChannel', 'Channel'),
        migrations.AlterField(
            model_name='channel',
            name='organization',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='channel', to='tenants.organization'),
        ),
        migrations.RunSQL(
            PERMISSIONS.format('alertchannel', 'channel', 'alert channel', 'channel'),
            PERMISSIONS.format('channel', 'alertchannel', 'channel', 'alert channel'),
        ),
        migrations.RemoveConstraint(model_name='delivery', name='delivery_once'),
        migrations.AddField(
            model_name='delivery',
            name='replay',
            field=models.PositiveSmallIntegerField(default=0, help_text='0 for the first, n for the n-th time that it is sent again.'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.UniqueConstraint(fields=('event', 'medium', 'replay'), name='delivery_once'),
        ),
        # Backwards there is room for one delivery: the first.
        migrations.RunSQL(migrations.RunSQL.noop, "DELETE FROM billing_delivery WHERE replay > 0"),
        migrations.CreateModel(
            name='KeyMark',
            fields=[
                ('id', models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False)),
                ('read_until', models.DateTimeField()),
            ],
            options={
                'constraints': [models.CheckConstraint(condition=models.Q(('id', 1)), name='key_mark_is_one')],
            },
        ),
        # What was before was told of, or is older than was ever looked for.
        migrations.RunSQL("INSERT INTO billing_keymark (id, read_until) VALUES (1, now())", migrations.RunSQL.noop),
    ]
