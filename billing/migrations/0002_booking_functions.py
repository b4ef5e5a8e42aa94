"""The two functions of the data plane, the expiry of holds, and the triggers that keep the ledger append-only."""

from django.db import migrations

RESERVE = """
CREATE FUNCTION billing_reserve_batch(rows json)
RETURNS TABLE (request_id uuid, outcome text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO billing_hold (
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_out_max, amount_pico, canvases, streamed, expires_at)
    SELECT
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_out_max, amount_pico, canvases, streamed, expires_at
    FROM json_populate_recordset(NULL::billing_hold, rows)
    ON CONFLICT (request_id) DO NOTHING;

    RETURN QUERY SELECT (r ->> 'request_id')::uuid, 'held'::text FROM json_array_elements(rows) r;
END $$;
"""

SETTLE = """
CREATE FUNCTION billing_settle_batch(rows json)
RETURNS TABLE (request_id uuid, outcome text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    DELETE FROM billing_hold
    WHERE request_id IN (SELECT (r ->> 'request_id')::uuid FROM json_array_elements(rows) r);

    INSERT INTO billing_usagerecord (
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
        status, usage_source, counted_prompt, counted_out, upstream_prompt, upstream_out,
        upstream_cached, upstream_id, canvases, streamed, first_byte_at, finished_at)
    SELECT
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
        status, usage_source, counted_prompt, counted_out, upstream_prompt, upstream_out,
        upstream_cached, upstream_id, canvases, streamed, first_byte_at, finished_at
    FROM json_populate_recordset(NULL::billing_usagerecord, rows)
    WHERE status <> 'void'
    ON CONFLICT (request_id) DO NOTHING;

    RETURN QUERY
    SELECT (r ->> 'request_id')::uuid, CASE r ->> 'status' WHEN 'void' THEN 'void' ELSE 'recorded' END
    FROM json_array_elements(rows) r;
END $$;
"""

EXPIRE = """
CREATE FUNCTION billing_expire_holds(rows_max integer)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    expired integer;
BEGIN
    WITH gone AS (
        DELETE FROM billing_hold
        WHERE request_id IN (
            SELECT request_id FROM billing_hold
            WHERE expires_at <= clock_timestamp()
            ORDER BY expires_at LIMIT rows_max FOR UPDATE SKIP LOCKED)
        RETURNING *)
    INSERT INTO billing_usagerecord (
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
        status, usage_source, counted_prompt, upstream_id, canvases, streamed, finished_at)
    SELECT
        gone.request_id, organization_id, team_id, key_id, gone.model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, 0, 0,
        tokens_in_text * text_in_micro + tokens_in_image * image_in_micro + request_micro * 1000000,
        amount_pico, 'expired', 'estimated', tokens_in_text + tokens_in_image, '', canvases, streamed,
        clock_timestamp()
    FROM gone JOIN billing_price price ON price.id = gone.price_id
    ON CONFLICT (request_id) DO NOTHING;
    GET DIAGNOSTICS expired = ROW_COUNT;
    RETURN expired;
END $$;
"""

APPEND_ONLY = """
CREATE FUNCTION billing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_usagerecord
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON billing_price
    FOR EACH STATEMENT EXECUTE FUNCTION billing_refuse_change();
"""

UNDO_APPEND_ONLY = """
DROP TRIGGER append_only ON billing_usagerecord;
DROP TRIGGER append_only ON billing_price;
DROP FUNCTION billing_refuse_change();
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_prices_holds_usage_records")]

    operations = [
        migrations.RunSQL(RESERVE, "DROP FUNCTION billing_reserve_batch(json)"),
        migrations.RunSQL(SETTLE, "DROP FUNCTION billing_settle_batch(json)"),
        migrations.RunSQL(EXPIRE, "DROP FUNCTION billing_expire_holds(integer)"),
        migrations.RunSQL(APPEND_ONLY, UNDO_APPEND_ONLY),
    ]
