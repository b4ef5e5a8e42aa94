"""What was booked before a budget stood is added up when it is set, not when its first request waits for it."""

import django.db.models.functions.datetime
from django.db import migrations, models

# Opens the windows that are missing over these owners. A budget's first window is opened with the budget itself
# (billing_begin_budget), and from then on no hold is made without the window that it falls into. So a window that
# follows another starts from nothing, unless the two overlap, because the organization moved to another time zone:
# then what was booked in both counts in both.
OPEN_WINDOWS = """
CREATE OR REPLACE FUNCTION billing_open_windows(
    organizations bigint[], teams bigint[], keys bigint[], at timestamptz)
RETURNS void LANGUAGE sql AS $$
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
$$;
"""

# What was booked under the budget's owner from one instant to another, of requests held since a window's start.
USED = """
CREATE FUNCTION billing_used(
    budget billing_budget, held_since timestamptz, since timestamptz, until timestamptz,
    OUT pico numeric, OUT tokens bigint)
LANGUAGE plpgsql STABLE AS $$
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
END $$;
"""

# A record without a hold (given back, or released by hand) counts in the windows of its own instant: they are opened.
WINDOWS_OVER = """
CREATE OR REPLACE FUNCTION billing_windows_over(organization bigint, team bigint, key bigint, at timestamptz)
RETURNS bigint[] LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM billing_open_windows(ARRAY[organization], ARRAY[team], ARRAY[key], at);
    RETURN (
        SELECT coalesce(array_agg(w.id ORDER BY w.id), '{}')
        FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
        WHERE b.is_active AND b.organization_id = organization AND (b.team_id IS NULL OR b.team_id = team)
          AND (b.key_id IS NULL OR b.key_id = key)
          AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity'));
END $$;
"""

# When a budget is set, what was booked in its present window counts as spent, once. All but the last
# minutes are added up while bookings go on. Then they wait for the rest: no hold is made or settled between the
# second sum and the commit, and what runs by then is held in this window, too, to be counted when it settles.
# A booking that takes longer than those minutes, from its clock to its commit, would be missed.
BEGIN_BUDGET = """
CREATE FUNCTION billing_begin_budget() RETURNS trigger LANGUAGE plpgsql AS $$
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
END $$;
"""

# Reserving and settling wait behind this lock for as long as it is asked for and held, so it is asked for briefly.
# Both take theirs before they look at anything.
STOP_BOOKINGS = """
CREATE FUNCTION billing_stop_bookings() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    patience text := current_setting('lock_timeout');
BEGIN
    FOR attempt IN 1 .. 50 LOOP
        BEGIN
            PERFORM set_config('lock_timeout', '100ms', true);
            LOCK TABLE billing_hold IN EXCLUSIVE MODE;
            PERFORM set_config('lock_timeout', patience, true);
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
    RAISE EXCEPTION 'the books are too busy to set a budget now: try again' USING ERRCODE = 'lock_not_available';
END $$;
"""

TRIGGER = """
CREATE TRIGGER begin_budget AFTER INSERT ON billing_budget FOR EACH ROW
    WHEN (NEW.is_active) EXECUTE FUNCTION billing_begin_budget();
CREATE TRIGGER begin_budget_again AFTER UPDATE OF is_active ON billing_budget FOR EACH ROW
    WHEN (NEW.is_active AND NOT OLD.is_active) EXECUTE FUNCTION billing_begin_budget();
"""

# Budgets that nobody has used yet have no window: theirs are opened now.
BEGIN_THOSE_THERE_ARE = """
UPDATE billing_budget SET is_active = false
WHERE is_active AND NOT EXISTS (SELECT FROM billing_budgetwindow w WHERE w.budget_id = billing_budget.id)
RETURNING id
"""


def begin_those_there_are(apps, schema_editor):
    with schema_editor.connection.cursor() as cursor:
        cursor.execute(BEGIN_THOSE_THERE_ARE)
        ids = [row[0] for row in cursor.fetchall()]
        cursor.execute("UPDATE billing_budget SET is_active = true WHERE id = ANY(%s)", [ids])


class Migration(migrations.Migration):
    dependencies = [("billing", "0008_booking_costs_less")]

    operations = [
        migrations.AddField(
            model_name="budgetwindow",
            name="opened_at",
            field=models.DateTimeField(
                db_default=django.db.models.functions.datetime.Now(),
                help_text="When what is booked began to be counted in it, request by request.",
            ),
        ),
        migrations.RunSQL(USED),
        migrations.RunSQL(OPEN_WINDOWS),
        migrations.RunSQL(WINDOWS_OVER),
        migrations.RunSQL(STOP_BOOKINGS),
        migrations.RunSQL(BEGIN_BUDGET),
        migrations.RunSQL(TRIGGER),
        migrations.RunPython(begin_those_there_are, migrations.RunPython.noop),
    ]
