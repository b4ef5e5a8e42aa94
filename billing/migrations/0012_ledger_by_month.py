"""The ledger in monthly partitions by request id, which begins with its time; and the instant that decides the period.

The rows there are move with it, in one transaction.
"""

import django.contrib.postgres.indexes
from django.db import migrations, models

# A UUIDv7 begins with its milliseconds, so a month's requests lie between the ids of two instants. What has another
# id lies in the DEFAULT partition; nothing of the data plane does.
FUNCTIONS = """
CREATE FUNCTION billing_id_at(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

CREATE FUNCTION billing_create_partition(month timestamp) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '5s' AS $$
DECLARE
    name text := to_char(month, '"billing_usagerecord_y"YYYY"m"MM');
    first uuid := billing_id_at(month AT TIME ZONE 'UTC');
    next uuid := billing_id_at((month + interval '1 month') AT TIME ZONE 'UTC');
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('billing_create_partition'));
    IF to_regclass(name) IS NOT NULL THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM billing_usagerecord_default WHERE request_id >= first AND request_id < next) THEN
        RAISE WARNING '% is not created: the default partition has rows of it already', name;
        RETURN false;
    END IF;
    -- Attached and not created in place, as that would stop all bookings until the commit.
    EXECUTE format('CREATE TABLE %I (LIKE billing_usagerecord INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', name);
    EXECUTE format(
        'ALTER TABLE billing_usagerecord ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name, first, next);
    PERFORM billing_guard_partition(name);
    RETURN true;
END $$;

-- The table's own trigger sees only what names the table; its owner could write past it.
CREATE FUNCTION billing_guard_partition(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON %I '
        'FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change()', name);
END $$;

CREATE FUNCTION billing_create_partitions(months_ahead integer, since timestamptz DEFAULT now())
RETURNS integer LANGUAGE sql AS $$
    SELECT count(*)::integer FROM generate_series(
        date_trunc('month', since AT TIME ZONE 'UTC'),
        date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => months_ahead), '1 month') month
    WHERE billing_create_partition(month)
$$;
"""

CONVERT = """
ALTER TABLE billing_usagerecord RENAME TO billing_usagerecord_before;
CREATE TABLE billing_usagerecord (
    LIKE billing_usagerecord_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
    billed_at timestamptz NOT NULL
) PARTITION BY RANGE (request_id);
CREATE TABLE billing_usagerecord_default PARTITION OF billing_usagerecord DEFAULT;
SELECT billing_guard_partition('billing_usagerecord'), billing_guard_partition('billing_usagerecord_default');
SELECT billing_create_partitions(3, greatest(
    coalesce((SELECT min(received_at) FROM billing_usagerecord_before), now()), now() - interval '5 years'));

DO $$
DECLARE
    columns text := (
        SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
        WHERE attrelid = 'billing_usagerecord_before'::regclass AND attnum > 0 AND NOT attisdropped);
BEGIN
    EXECUTE format(
        'INSERT INTO billing_usagerecord (%1$s, billed_at) SELECT %1$s, received_at FROM billing_usagerecord_before',
        columns);
END $$;
DROP TABLE billing_usagerecord_before;
ALTER TABLE billing_usagerecord ADD CONSTRAINT billing_usagerecord_pkey PRIMARY KEY (request_id);
CREATE INDEX usage_by_organization ON billing_usagerecord (organization_id, recorded_at);
CREATE INDEX usage_by_key ON billing_usagerecord (key_id, recorded_at);
CREATE INDEX usage_over_its_hold ON billing_usagerecord (recorded_at)
    WHERE amount_pico > held_pico AND kind = 'usage';
CREATE INDEX usage_by_period ON billing_usagerecord (organization_id, billed_at);
CREATE INDEX usage_recorded ON billing_usagerecord USING brin (recorded_at) WITH (autosummarize = on);
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0011_price_lists_are_kept")]

    operations = [
        migrations.RunSQL(FUNCTIONS),
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(CONVERT)],
            state_operations=[
                migrations.AddField(
                    model_name="usagerecord",
                    name="billed_at",
                    field=models.DateTimeField(
                        help_text="Decides its period: when it was received, unless that period was closed."
                    ),
                    preserve_default=False,
                ),
                migrations.AddIndex(
                    model_name="usagerecord",
                    index=models.Index(fields=["organization", "billed_at"], name="usage_by_period"),
                ),
                migrations.AddIndex(
                    model_name="usagerecord",
                    index=django.contrib.postgres.indexes.BrinIndex(
                        autosummarize=True, fields=["recorded_at"], name="usage_recorded"
                    ),
                ),
            ],
        ),
    ]
