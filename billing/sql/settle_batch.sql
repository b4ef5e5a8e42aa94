CREATE OR REPLACE FUNCTION public.billing_settle_batch(rows json)
 RETURNS TABLE(request_id uuid, outcome text)
 LANGUAGE plpgsql
AS $function$
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
END $function$;
