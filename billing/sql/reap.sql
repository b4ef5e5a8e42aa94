CREATE OR REPLACE FUNCTION public.billing_reap(dead_after interval, rows_max integer)
 RETURNS integer
 LANGUAGE plpgsql
AS $function$
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
END $function$;
