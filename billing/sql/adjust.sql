CREATE OR REPLACE FUNCTION public.billing_adjust(rows json, at timestamp with time zone)
 RETURNS void
 LANGUAGE plpgsql
AS $function$
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
END $function$;
