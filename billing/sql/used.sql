CREATE OR REPLACE FUNCTION public.billing_used(budget billing_budget, held_since timestamp with time zone, since timestamp with time zone, until timestamp with time zone, OUT pico numeric, OUT tokens bigint)
 RETURNS record
 LANGUAGE plpgsql
 STABLE
AS $function$
BEGIN
    pico := 0;
    tokens := 0;
    IF until IS NULL OR until <= since THEN
        RETURN;
    END IF;
    SELECT coalesce(sum(u.amount_pico), 0),
           coalesce(sum(u.tokens_in_text + u.tokens_in_image + u.tokens_in_cached + u.tokens_out), 0)
    INTO pico, tokens
    FROM billing_usagerecord u
    WHERE u.organization_id = budget.organization_id
      AND u.recorded_at >= since AND u.recorded_at < until AND u.held_at >= held_since
      AND (budget.team_id IS NULL OR u.team_id = budget.team_id)
      AND (budget.key_id IS NULL OR u.key_id = budget.key_id);
END $function$;
