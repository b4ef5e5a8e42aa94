CREATE OR REPLACE FUNCTION public.billing_refusal(window_id bigint, more_pico numeric, more_tokens numeric, needed_pico bigint, needed_tokens bigint)
 RETURNS text
 LANGUAGE sql
AS $function$
    SELECT json_build_object(
        'type', 'budget', 'budget_id', b.id, 'name', b.name, 'period', b.period,
        'level', CASE WHEN b.key_id IS NOT NULL THEN 'key' WHEN b.team_id IS NOT NULL THEN 'team' ELSE 'organization' END,
        'unit', CASE WHEN needed_pico > b.limit_micro::numeric * 1000000 - w.spent_pico - w.held_pico - more_pico
                     THEN 'money' ELSE 'tokens' END,
        'limit_pico', b.limit_micro::numeric * 1000000, 'limit_tokens', b.limit_tokens,
        'spent_pico', w.spent_pico, 'spent_tokens', w.spent_tokens,
        'held_pico', w.held_pico + more_pico, 'held_tokens', w.held_tokens + more_tokens,
        'needed_pico', needed_pico, 'needed_tokens', needed_tokens,
        'resets_at', w.ends_at)::text
    FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id WHERE w.id = window_id
$function$;
