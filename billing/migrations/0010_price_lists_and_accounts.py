"""Price lists, tiers, allowances and accounts. Prices that there are go to the default list of their currency."""

import datetime
import django.core.validators
import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


# The one time that prices are changed after they were written: what they say stays as it was.
STANDARD_LISTS = """
INSERT INTO billing_pricelist (slug, name, currency, is_default, created_at)
SELECT DISTINCT 'standard-' || lower(currency), 'Standard ' || currency, currency, true, now() FROM billing_price;
ALTER TABLE billing_price DISABLE TRIGGER append_only;
UPDATE billing_price p SET price_list_id = l.id FROM billing_pricelist l WHERE l.currency = p.currency;
ALTER TABLE billing_price ENABLE TRIGGER append_only;
"""


class Migration(migrations.Migration):

    dependencies = [
        ('billing', '0009_windows_open_with_their_budget'),
        ('tenants', '0006_limits'),
    ]

    operations = [
        migrations.CreateModel(
            name='Account',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('discount_bp', models.IntegerField(default=0, help_text='In basis points (250 = 2.5 %), on usage after its allowances; below zero: a markup.', validators=[django.core.validators.MinValueValidator(-10000), django.core.validators.MaxValueValidator(10000)])),
                ('tax_bp', models.IntegerField(default=500, help_text='In basis points (500 = 5 %).', validators=[django.core.validators.MinValueValidator(0), django.core.validators.MaxValueValidator(10000)])),
                ('tax_exempt', models.BooleanField(default=False)),
                ('legal_name', models.CharField(blank=True, max_length=200)),
                ('tax_id', models.CharField(blank=True, max_length=64)),
                ('address', models.TextField(blank=True, max_length=1000)),
                ('invoice_language', models.CharField(choices=[('en', 'English'), ('zh-hant', '繁體中文')], default='en', max_length=16)),
                ('payment_terms_days', models.PositiveSmallIntegerField(default=30, validators=[django.core.validators.MaxValueValidator(365)])),
                ('closed_until', models.DateTimeField(default=datetime.datetime(1970, 1, 1, 0, 0, tzinfo=datetime.timezone.utc), editable=False, help_text='The end of its last closed period: usage from before is billed in the next one.')),
            ],
            options={
                'ordering': ['organization__slug'],
            },
        ),
        migrations.CreateModel(
            name='Allowance',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('model_name', models.CharField(max_length=200)),
                ('kind', models.CharField(choices=[('text_in', 'text in'), ('image_in', 'image in'), ('cached_in', 'cached in'), ('out', 'out')], max_length=16)),
                ('tokens_per_month', models.BigIntegerField(help_text='All teams together; 0 ends it.', validators=[django.core.validators.MinValueValidator(0)])),
                ('effective_from', models.DateTimeField(default=django.utils.timezone.now)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                'ordering': ['price_list', 'model_name', 'kind', '-effective_from'],
            },
        ),
        migrations.CreateModel(
            name='PriceList',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('slug', models.CharField(max_length=63, unique=True, validators=[django.core.validators.RegexValidator('\\A[a-z0-9][a-z0-9-]*\\Z', 'Use small letters, digits and hyphens, beginning with a letter or a digit.')])),
                ('name', models.CharField(max_length=200)),
                ('currency', models.CharField(max_length=3, validators=[django.core.validators.RegexValidator('\\A[A-Z]{3}\\Z', 'Use the three capital letters of ISO 4217.')])),
                ('is_default', models.BooleanField(default=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
            ],
            options={
                'ordering': ['currency', '-is_default', 'slug'],
            },
        ),
        migrations.CreateModel(
            name='PriceTier',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(choices=[('text_in', 'text in'), ('image_in', 'image in'), ('cached_in', 'cached in'), ('out', 'out')], max_length=16)),
                ('from_tokens', models.BigIntegerField(help_text="In the period, all of the organization's teams together.", validators=[django.core.validators.MinValueValidator(1)])),
                ('micro', models.BigIntegerField(help_text='Micro-units per million tokens.', validators=[django.core.validators.MinValueValidator(0)])),
            ],
            options={
                'ordering': ['price', 'kind', 'from_tokens'],
            },
        ),
        migrations.AlterModelOptions(
            name='price',
            options={'ordering': ['model_name', 'currency', 'price_list', '-effective_from']},
        ),
        migrations.RemoveConstraint(
            model_name='price',
            name='price_version_once',
        ),
        migrations.AddField(
            model_name='price',
            name='tier_count',
            field=models.PositiveSmallIntegerField(db_default=0, default=0, editable=False, help_text='How many tiers follow its own amounts.'),
        ),
        migrations.AddField(
            model_name='price',
            name='tier_mode',
            field=models.CharField(choices=[('flat', 'one price for all'), ('graduated', "graduated: each tier's tokens at its own price"), ('volume', 'volume: all tokens at the price of the tier that is reached')], db_default='flat', default='flat', max_length=16),
        ),
        migrations.AlterField(
            model_name='price',
            name='currency',
            field=models.CharField(help_text="Its list's.", max_length=3, validators=[django.core.validators.RegexValidator('\\A[A-Z]{3}\\Z', 'Three capital letters, such as TWD.')]),
        ),
        migrations.AddField(
            model_name='account',
            name='organization',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='account', to='tenants.organization'),
        ),
        migrations.AddConstraint(
            model_name='pricelist',
            constraint=models.UniqueConstraint(condition=models.Q(('is_default', True)), fields=('currency',), name='price_list_default_once'),
        ),
        migrations.AddConstraint(
            model_name='pricelist',
            constraint=models.UniqueConstraint(fields=('id', 'currency'), name='price_list_with_currency'),
        ),
        migrations.AddConstraint(
            model_name='pricelist',
            constraint=models.CheckConstraint(condition=models.Q(('name', ''), _negated=True), name='price_list_has_a_name'),
        ),
        migrations.AddConstraint(
            model_name='pricelist',
            constraint=models.CheckConstraint(condition=models.Q(('slug__regex', '\\A[a-z0-9][a-z0-9-]*\\Z')), name='price_list_slug_is_plain'),
        ),
        migrations.AddConstraint(
            model_name='pricelist',
            constraint=models.CheckConstraint(condition=models.Q(('currency__regex', '\\A[A-Z]{3}\\Z')), name='price_list_currency_is_iso_4217'),
        ),
        migrations.AddField(
            model_name='allowance',
            name='price_list',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='allowances', to='billing.pricelist'),
        ),
        migrations.AddField(
            model_name='account',
            name='price_list',
            field=models.ForeignKey(blank=True, help_text='Empty for the default list of its currency.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='accounts', to='billing.pricelist'),
        ),
        migrations.AddField(
            model_name='price',
            name='price_list',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='prices', to='billing.pricelist'),
        ),
        migrations.RunSQL(STANDARD_LISTS, migrations.RunSQL.noop),
        migrations.AlterField(
            model_name='price',
            name='price_list',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='prices', to='billing.pricelist'),
        ),
        migrations.AddConstraint(
            model_name='price',
            constraint=models.UniqueConstraint(fields=('price_list', 'model_name', 'effective_from'), name='price_version_once'),
        ),
        migrations.AddConstraint(
            model_name='price',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('tier_count', 0), ('tier_mode', 'flat')), models.Q(('tier_count__gte', 1), ('tier_count__lte', 100), ('tier_mode__in', ['graduated', 'volume'])), _connector='OR'), name='price_has_the_tiers_of_its_mode'),
        ),
        migrations.AddField(
            model_name='pricetier',
            name='price',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='tiers', to='billing.price'),
        ),
        migrations.AddConstraint(
            model_name='allowance',
            constraint=models.UniqueConstraint(fields=('price_list', 'model_name', 'kind', 'effective_from'), name='allowance_version_once'),
        ),
        migrations.AddConstraint(
            model_name='allowance',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['text_in', 'image_in', 'cached_in', 'out'])), name='allowance_kind_is_known'),
        ),
        migrations.AddConstraint(
            model_name='allowance',
            constraint=models.CheckConstraint(condition=models.Q(('tokens_per_month__gte', 0), ('tokens_per_month__lte', 1000000000000000)), name='allowance_in_range'),
        ),
        migrations.AddConstraint(
            model_name='account',
            constraint=models.CheckConstraint(condition=models.Q(('discount_bp__gte', -10000), ('discount_bp__lte', 10000), ('tax_bp__gte', 0), ('tax_bp__lte', 10000)), name='account_shares_in_range'),
        ),
        migrations.AddConstraint(
            model_name='account',
            constraint=models.CheckConstraint(condition=models.Q(('invoice_language__in', ['en', 'zh-hant'])), name='account_language_is_known'),
        ),
        migrations.AddConstraint(
            model_name='account',
            constraint=models.CheckConstraint(condition=models.Q(('payment_terms_days__lte', 365)), name='account_payment_terms_in_range'),
        ),
        migrations.AddConstraint(
            model_name='pricetier',
            constraint=models.UniqueConstraint(fields=('price', 'kind', 'from_tokens'), name='price_tier_once'),
        ),
        migrations.AddConstraint(
            model_name='pricetier',
            constraint=models.CheckConstraint(condition=models.Q(('kind__in', ['text_in', 'image_in', 'cached_in', 'out'])), name='price_tier_kind_is_known'),
        ),
        migrations.AddConstraint(
            model_name='pricetier',
            constraint=models.CheckConstraint(condition=models.Q(('from_tokens__gte', 1), ('from_tokens__lte', 1000000000000000), ('micro__gte', 0), ('micro__lte', 1000000000000)), name='price_tier_in_range'),
        ),
    ]
