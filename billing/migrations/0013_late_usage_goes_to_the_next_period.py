"""Settling, adjusting and reaping say which period they are billed in: the one of the request, or the first open one.

`greatest` takes no notice of an organization that has no account. The account is read without a lock: who closes a period
waits until every statement has ended that may have read it as open: see `Account.close`.
"""

from django.db import migrations

SETTLE = """
CREATE OR REPLACE FUNCTION billing_settle_batch(rows json)
RETURNS TABLE (request_id uuid, outcome text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := clock_timestamp();
    incoming billing_usagerecord[];
    settled int;
    windows bigint[];
    unheld_pico bigint[];
    unheld_tokens bigint[];
    spent_pico bigint[];
    spent_tokens bigint[];
BEGIN
    SELECT array_agg(r) INTO incoming FROM json_populate_recordset(NULL::billing_usagerecord, rows) r;

    WITH gone AS (
        DELETE FROM billing_hold h USING unnest(incoming) i WHERE h.request_id = i.request_id
        RETURNING h.request_id, h.held_at, h.window_ids, h.window_pico, h.window_tokens),
    written AS (
        INSERT INTO billing_usagerecord (
            request_id, kind, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
            tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
            status, usage_source, policy, counted_prompt, counted_out, upstream_prompt, upstream_out,
            upstream_cached, upstream_id, canvases, streamed, window_ids, held_at, first_byte_at, finished_at,
            recorded_at, billed_at)
        SELECT
            i.request_id, 'usage', i.organization_id, i.team_id, i.key_id, i.model_name, i.backend_name, i.price_id,
            i.received_at, i.tokens_in_text, i.tokens_in_image, i.tokens_in_cached, i.tokens_out, i.amount_pico,
            i.held_pico, i.status, i.usage_source, i.policy, i.counted_prompt, i.counted_out, i.upstream_prompt,
            i.upstream_out, i.upstream_cached, i.upstream_id, i.canvases, i.streamed,
            coalesce(g.window_ids, billing_windows_over(i.organization_id, i.team_id, i.key_id, at)),
            coalesce(g.held_at, at), i.first_byte_at, i.finished_at, at, greatest(i.received_at, a.closed_until)
        FROM unnest(incoming) i LEFT JOIN gone g ON g.request_id = i.request_id
        LEFT JOIN billing_account a ON a.organization_id = i.organization_id
        WHERE i.status <> 'void'
        ON CONFLICT (request_id) DO NOTHING
        RETURNING request_id, window_ids, amount_pico,
                  tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out AS tokens),
    moves AS (
        SELECT u.id, u.pico AS unheld_pico, u.tokens AS unheld_tokens, 0::bigint AS spent_pico, 0::bigint AS spent_tokens
        FROM gone, unnest(window_ids, window_pico, window_tokens) u (id, pico, tokens)
        UNION ALL
        SELECT u.id, 0, 0, amount_pico, tokens FROM written, unnest(window_ids) u (id))
    SELECT array_agg(m.id), array_agg(m.unheld_pico), array_agg(m.unheld_tokens), array_agg(m.spent_pico),
           array_agg(m.spent_tokens),
           (SELECT count(*) FROM (SELECT request_id FROM gone UNION SELECT request_id FROM written) done)
    INTO windows, unheld_pico, unheld_tokens, spent_pico, spent_tokens, settled
    FROM moves m;

    IF windows IS NOT NULL THEN
        PERFORM billing_move(windows, unheld_pico, unheld_tokens, spent_pico, spent_tokens);
    END IF;
    IF position('"answer":' IN rows::text) > 0 THEN
        PERFORM billing_keep_answers(rows);
    END IF;
    IF settled < cardinality(incoming) THEN
        PERFORM billing_adjust(rows, at);
    END IF;
    RETURN QUERY
    SELECT i.request_id, CASE i.status WHEN 'void' THEN 'void' ELSE 'recorded' END FROM unnest(incoming) i;
END $$;
"""

ADJUST = """
CREATE OR REPLACE FUNCTION billing_adjust(rows json, at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    windows bigint[];
    zeros bigint[];
    pico bigint[];
    tokens bigint[];
BEGIN
    WITH written AS (
        INSERT INTO billing_usagerecord (
            request_id, kind, adjusts_id, organization_id, team_id, key_id, model_name, backend_name, price_id,
            received_at, tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
            status, usage_source, policy, counted_prompt, counted_out, upstream_prompt, upstream_out, upstream_cached,
            upstream_id, canvases, streamed, window_ids, held_at, first_byte_at, finished_at, recorded_at,
            billed_at)
        SELECT
            overlay(md5(old.request_id::text || 'adjustment') placing left(replace(old.request_id::text, '-', ''), 13)
                    from 1)::uuid,
            'adjustment', old.request_id, old.organization_id, old.team_id, old.key_id, old.model_name,
            old.backend_name, old.price_id, old.received_at,
            coalesce(late.tokens_in_text, 0) - old.tokens_in_text,
            coalesce(late.tokens_in_image, 0) - old.tokens_in_image,
            coalesce(late.tokens_in_cached, 0) - old.tokens_in_cached,
            coalesce(late.tokens_out, 0) - old.tokens_out,
            coalesce(late.amount_pico, 0) - old.amount_pico, 0,
            CASE late.status WHEN 'void' THEN 'ok' ELSE late.status END,
            coalesce(late.usage_source, 'counted'), coalesce(late.policy, old.policy), old.counted_prompt,
            late.counted_out, late.upstream_prompt, late.upstream_out, late.upstream_cached,
            coalesce(late.upstream_id, ''), old.canvases, old.streamed, old.window_ids, old.held_at,
            late.first_byte_at, coalesce(late.finished_at, at), at, greatest(old.billed_at, a.closed_until)
        FROM json_populate_recordset(NULL::billing_usagerecord, rows) late
        JOIN billing_usagerecord old ON old.request_id = late.request_id AND old.status = 'expired'
        LEFT JOIN billing_account a ON a.organization_id = old.organization_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING window_ids, amount_pico,
                  tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out AS tokens)
    SELECT array_agg(u.id), array_agg(0::bigint), array_agg(amount_pico), array_agg(written.tokens)
    INTO windows, zeros, pico, tokens
    FROM written, unnest(window_ids) u (id);
    IF windows IS NOT NULL THEN
        PERFORM billing_move(windows, zeros, zeros, pico, tokens);
    END IF;
END $$;
"""

REAP = """
CREATE OR REPLACE FUNCTION billing_reap(dead_after interval, rows_max integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    at timestamptz := clock_timestamp();
    reaped integer;
    windows bigint[];
    unheld_pico bigint[];
    unheld_tokens bigint[];
    spent_pico bigint[];
    spent_tokens bigint[];
BEGIN
    WITH chosen AS (
        SELECT request_id FROM billing_hold h
        WHERE h.expires_at <= at
           OR (h.held_at < at - dead_after
               AND pg_postmaster_start_time() < at - dead_after
               AND NOT EXISTS (
                   SELECT FROM billing_process p WHERE p.id = h.process_id AND p.beat_at > at - dead_after))
        ORDER BY request_id LIMIT rows_max FOR UPDATE SKIP LOCKED),
    gone AS (
        DELETE FROM billing_hold h USING chosen WHERE h.request_id = chosen.request_id RETURNING h.*),
    written AS (
        INSERT INTO billing_usagerecord (
            request_id, kind, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
            tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
            status, usage_source, policy, counted_prompt, upstream_id, canvases, streamed, window_ids, held_at,
            finished_at, recorded_at, billed_at)
        SELECT
            g.request_id, 'usage', g.organization_id, g.team_id, g.key_id, g.model_name, g.backend_name, g.price_id,
            g.received_at, g.tokens_in_text, g.tokens_in_image, 0, 0,
            CASE organization.bills_lost WHEN 'nothing' THEN 0 ELSE
                g.tokens_in_text * p.text_in_micro + g.tokens_in_image * p.image_in_micro + p.request_micro * 1000000 END,
            g.amount_pico, 'expired', 'estimated', organization.bills_lost, g.tokens_in_text + g.tokens_in_image, '',
            g.canvases, g.streamed, g.window_ids, g.held_at, at, at, greatest(g.received_at, a.closed_until)
        FROM gone g
        JOIN billing_price p ON p.id = g.price_id
        JOIN tenants_organization organization ON organization.id = g.organization_id
        LEFT JOIN billing_account a ON a.organization_id = g.organization_id
        ON CONFLICT (request_id) DO NOTHING
        RETURNING window_ids, amount_pico, tokens_in_text + tokens_in_image AS tokens),
    moves AS (
        SELECT u.id, u.pico AS unheld_pico, u.tokens AS unheld_tokens, 0::bigint AS spent_pico, 0::bigint AS spent_tokens
        FROM gone, unnest(window_ids, window_pico, window_tokens) u (id, pico, tokens)
        UNION ALL
        SELECT u.id, 0, 0, amount_pico, tokens FROM written, unnest(window_ids) u (id))
    SELECT array_agg(m.id), array_agg(m.unheld_pico), array_agg(m.unheld_tokens), array_agg(m.spent_pico),
           array_agg(m.spent_tokens), (SELECT count(*) FROM gone)
    INTO windows, unheld_pico, unheld_tokens, spent_pico, spent_tokens, reaped
    FROM moves m;
    IF windows IS NOT NULL THEN
        PERFORM billing_move(windows, unheld_pico, unheld_tokens, spent_pico, spent_tokens);
    END IF;
    RETURN reaped;
END $$;
"""


class Migration(migrations.Migration):
    dependencies = [("billing", "0012_ledger_by_month")]

    operations = [migrations.RunSQL(SETTLE), migrations.RunSQL(ADJUST), migrations.RunSQL(REAP)]
