CREATE OR REPLACE FUNCTION public.billing_windows_over(organization bigint, team bigint, key bigint, at timestamp with time zone)
 RETURNS bigint[]
 LANGUAGE plpgsql
AS $function$
BEGIN
    PERFORM billing_open_windows(ARRAY[organization], ARRAY[team], ARRAY[key], at);
    RETURN (
        SELECT coalesce(array_agg(w.id ORDER BY w.id), '{}')
        FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
        WHERE b.is_active AND b.organization_id = organization AND (b.team_id IS NULL OR b.team_id = team)
          AND (b.key_id IS NULL OR b.key_id = key)
          AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity'));
END $function$;
