CREATE OR REPLACE FUNCTION public.billing_open_windows(organizations bigint[], teams bigint[], keys bigint[], at timestamp with time zone)
 RETURNS void
 LANGUAGE sql
AS $function$
    INSERT INTO billing_budgetwindow (
        budget_id, starts_at, ends_at, opened_pico, opened_tokens, spent_pico, spent_tokens,
        held_pico, held_tokens, alerted_percent)
    SELECT budget.id, opening.starts_at, billing_window_end(budget.period, organization.timezone, at),
           used.pico, used.tokens, used.pico, used.tokens, 0, 0, 0
    FROM billing_budget budget
    JOIN tenants_organization organization ON organization.id = budget.organization_id
    CROSS JOIN LATERAL (
        SELECT billing_window_start(budget.period, organization.timezone, at) AS starts_at) opening
    CROSS JOIN LATERAL (
        SELECT max(w.ends_at) AS ended_at FROM billing_budgetwindow w
        WHERE w.budget_id = budget.id AND w.starts_at < opening.starts_at) previous
    CROSS JOIN LATERAL billing_used(budget, opening.starts_at, opening.starts_at, previous.ended_at) used
    WHERE budget.is_active AND budget.organization_id = ANY(organizations)
      AND (budget.team_id IS NULL OR budget.team_id = ANY(teams))
      AND (budget.key_id IS NULL OR budget.key_id = ANY(keys))
      AND NOT EXISTS (
          SELECT FROM billing_budgetwindow w
          WHERE w.budget_id = budget.id AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity'))
    ORDER BY budget.id
    ON CONFLICT (budget_id, starts_at) DO NOTHING
$function$;
