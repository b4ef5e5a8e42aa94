CREATE OR REPLACE FUNCTION public.billing_begin_budget()
 RETURNS trigger
 LANGUAGE plpgsql
AS $function$
DECLARE
    zone text := (SELECT timezone FROM tenants_organization WHERE id = NEW.organization_id);
    starts timestamptz := billing_window_start(NEW.period, zone, clock_timestamp());
    settled_by timestamptz := clock_timestamp() - interval '5 minutes';
    at timestamptz;
    early record;
    late record;
    running record;
    opened_id bigint;
BEGIN
    IF EXISTS (SELECT FROM billing_budgetwindow w WHERE w.budget_id = NEW.id) THEN
        RETURN NULL;  -- it was switched off and on: what was used meanwhile does not count
    END IF;
    early := billing_used(NEW, starts, starts, settled_by);
    PERFORM billing_stop_bookings();
    at := clock_timestamp();
    IF billing_window_start(NEW.period, zone, at) <> starts THEN  -- midnight came: nothing is booked in this one
        starts := billing_window_start(NEW.period, zone, at);
        early := (0::numeric, 0::bigint);
    END IF;
    late := billing_used(NEW, starts, greatest(starts, settled_by), 'infinity');

    INSERT INTO billing_budgetwindow (
        budget_id, starts_at, ends_at, opened_at, opened_pico, opened_tokens, spent_pico, spent_tokens,
        held_pico, held_tokens, alerted_percent)
    VALUES (NEW.id, starts, billing_window_end(NEW.period, zone, at), at,
            early.pico + late.pico, early.tokens + late.tokens,
            early.pico + late.pico, early.tokens + late.tokens, 0, 0, 0)
    RETURNING id INTO opened_id;

    WITH joined AS (
        UPDATE billing_hold h
        SET window_ids = h.window_ids || opened_id,
            window_pico = h.window_pico || least(h.amount_pico, NEW.hold_micro_max::numeric * 1000000)::bigint,
            window_tokens = h.window_tokens || least(h.tokens_held, NEW.hold_tokens_max)::bigint
        WHERE h.organization_id = NEW.organization_id AND h.held_at >= starts
          AND (NEW.team_id IS NULL OR h.team_id = NEW.team_id) AND (NEW.key_id IS NULL OR h.key_id = NEW.key_id)
        RETURNING least(h.amount_pico, NEW.hold_micro_max::numeric * 1000000) AS pico,
                  least(h.tokens_held, NEW.hold_tokens_max) AS tokens)
    SELECT coalesce(sum(pico), 0) AS pico, coalesce(sum(tokens), 0) AS tokens INTO running FROM joined;
    UPDATE billing_budgetwindow w
    SET held_pico = w.held_pico + running.pico, held_tokens = w.held_tokens + running.tokens
    WHERE w.id = opened_id AND running.tokens > 0;
    RETURN NULL;
END $function$;

CREATE TRIGGER begin_budget AFTER INSERT ON billing_budget FOR EACH ROW WHEN (new.is_active) EXECUTE FUNCTION billing_begin_budget();
CREATE TRIGGER begin_budget_again AFTER UPDATE OF is_active ON billing_budget FOR EACH ROW WHEN (new.is_active AND NOT old.is_active) EXECUTE FUNCTION billing_begin_budget();
