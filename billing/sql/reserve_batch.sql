CREATE OR REPLACE FUNCTION public.billing_reserve_batch(rows json)
 RETURNS TABLE(request_id uuid, outcome text)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    at timestamptz := clock_timestamp();
    incoming billing_hold[];
BEGIN
    -- It looks which budgets there are, then makes its holds: none may begin to be enforced in between (0009).
    LOCK TABLE billing_hold IN ROW EXCLUSIVE MODE;
    SELECT array_agg(r) INTO incoming FROM json_populate_recordset(NULL::billing_hold, rows) r;

    IF EXISTS (
        SELECT FROM unnest(incoming) i WHERE i.idempotency_key IS NOT NULL
        UNION ALL
        SELECT FROM unnest(incoming) i JOIN billing_budget b ON b.is_active AND b.organization_id = i.organization_id)
    THEN
        RETURN QUERY SELECT * FROM billing_reserve_within_budgets(incoming, at);
        RETURN;
    END IF;
    INSERT INTO billing_hold (
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_out_max, tokens_held, amount_pico, canvases, streamed,
        process_id, window_ids, window_pico, window_tokens, held_at, expires_at)
    SELECT
        request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
        tokens_in_text, tokens_in_image, tokens_out_max, tokens_held, amount_pico, canvases, streamed,
        process_id, '{}', '{}', '{}', at, expires_at
    FROM unnest(incoming)
    ON CONFLICT (request_id) DO NOTHING;
    RETURN QUERY SELECT i.request_id, 'held' FROM unnest(incoming) i;
END $function$;
