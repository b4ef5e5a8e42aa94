CREATE OR REPLACE FUNCTION public.billing_keep_budget_owner()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
BEGIN
    RAISE EXCEPTION 'a budget keeps its owner and its period: set a new one'
        USING ERRCODE = 'check_violation';
END $function$;

CREATE TRIGGER keep_owner BEFORE UPDATE ON billing_budget FOR EACH ROW WHEN (old.organization_id IS DISTINCT FROM new.organization_id OR old.team_id IS DISTINCT FROM new.team_id OR old.key_id IS DISTINCT FROM new.key_id OR old.period::text IS DISTINCT FROM new.period::text) EXECUTE FUNCTION billing_keep_budget_owner();
