"""Budgets are kept by the functions that book: one transaction makes the hold and takes it from every budget over it."""

from django.db import migrations

# A window begins at local midnight of the organization's time zone; PostgreSQL knows the zones and their changes.
# A budget for life has one window, without an end.
WINDOWS = """
CREATE FUNCTION billing_window_start(period text, zone text, at timestamptz)
RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE period WHEN 'life' THEN 'epoch'::timestamptz ELSE date_trunc(period, at, zone) END
$$;
CREATE FUNCTION billing_window_end(period text, zone text, at timestamptz)
RETURNS timestamptz LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN period <> 'life' THEN
        (date_trunc(period, at AT TIME ZONE zone) + ('1 ' || period)::interval) AT TIME ZONE zone END
$$;

CREATE FUNCTION billing_open_windows(organizations bigint[], teams bigint[], keys bigint[], at timestamptz)
RETURNS void LANGUAGE sql AS $$
    -- What was booked in a window before its budget was set counts as spent.
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
        SELECT coalesce(sum(amount_pico), 0) AS pico,
               coalesce(sum(tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out), 0) AS tokens
        FROM billing_usagerecord usage
        WHERE usage.organization_id = budget.organization_id
          AND usage.recorded_at >= opening.starts_at AND usage.held_at >= opening.starts_at
          AND (budget.team_id IS NULL OR usage.team_id = budget.team_id)
          AND (budget.key_id IS NULL OR usage.key_id = budget.key_id)) used
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

# outcome: 'held', or a JSON object that says which budget refuses and why. Windows are locked in the order of
# their ids, here and in billing_move, so that no two transactions wait for each other.
RESERVE = """
CREATE OR REPLACE FUNCTION billing_reserve_batch(rows json)
RETURNS TABLE (request_id uuid, outcome text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := clock_timestamp();
    organizations bigint[];
    teams bigint[];
    keys bigint[];
    w record;
    hold record;
    k int;
    refused int;
    taken_pico bigint[];
    taken_tokens bigint[];
    -- One element for each window that stands over any of these requests:
    w_id bigint[] := '{}';
    w_organization bigint[] := '{}';
    w_team bigint[] := '{}';
    w_key bigint[] := '{}';
    room_pico numeric[] := '{}';      -- NULL where the budget does not limit money
    room_tokens numeric[] := '{}';    -- NULL where it does not limit tokens
    cap_pico numeric[] := '{}';
    cap_tokens numeric[] := '{}';
    more_pico numeric[] := '{}';
    more_tokens numeric[] := '{}';
BEGIN
    SELECT array_agg(DISTINCT organization_id), array_agg(DISTINCT team_id), array_agg(DISTINCT key_id)
    INTO organizations, teams, keys FROM json_populate_recordset(NULL::billing_hold, rows);

    IF EXISTS (SELECT FROM billing_budget WHERE is_active AND organization_id = ANY(organizations)) THEN
        PERFORM billing_open_windows(organizations, teams, keys, at);
        FOR w IN
            SELECT w.id, b.organization_id, b.team_id, b.key_id,
                   b.limit_micro::numeric * 1000000 - w.spent_pico - w.held_pico AS room_pico,
                   b.limit_tokens - w.spent_tokens - w.held_tokens AS room_tokens,
                   b.hold_micro_max::numeric * 1000000 AS cap_pico, b.hold_tokens_max AS cap_tokens
            FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
            WHERE b.is_active AND b.organization_id = ANY(organizations)
              AND (b.team_id IS NULL OR b.team_id = ANY(teams)) AND (b.key_id IS NULL OR b.key_id = ANY(keys))
              AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity')
            ORDER BY w.id FOR UPDATE OF w
        LOOP
            w_id := w_id || w.id;
            w_organization := w_organization || w.organization_id;
            w_team := w_team || w.team_id;
            w_key := w_key || w.key_id;
            room_pico := room_pico || w.room_pico;
            room_tokens := room_tokens || w.room_tokens::numeric;
            cap_pico := cap_pico || w.cap_pico;
            cap_tokens := cap_tokens || w.cap_tokens::numeric;
            more_pico := more_pico || 0::numeric;
            more_tokens := more_tokens || 0::numeric;
        END LOOP;
    END IF;

    FOR hold IN
        SELECT incoming.*, (
            SELECT coalesce(array_agg(o.n ORDER BY o.n), '{}')
            FROM unnest(w_organization, w_team, w_key) WITH ORDINALITY o (organization_id, team_id, key_id, n)
            WHERE o.organization_id = incoming.organization_id
              AND (o.team_id IS NULL OR o.team_id = incoming.team_id)
              AND (o.key_id IS NULL OR o.key_id = incoming.key_id)) AS over
        FROM json_populate_recordset(NULL::billing_hold, rows) incoming
    LOOP
        request_id := hold.request_id;
        outcome := 'held';
        refused := NULL;
        taken_pico := '{}';
        taken_tokens := '{}';
        -- A batch that is sent again after a broken connection has taken its money already.
        IF EXISTS (SELECT FROM billing_hold h WHERE h.request_id = hold.request_id) THEN
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF hold.idempotency_key IS NOT NULL THEN
            outcome := billing_claim(hold.key_id, hold.idempotency_key, hold.body_sha256, hold.request_id, at);
            IF outcome <> 'held' THEN
                RETURN NEXT;
                CONTINUE;
            END IF;
        END IF;
        FOREACH k IN ARRAY hold.over LOOP
            taken_pico := taken_pico || least(hold.amount_pico, cap_pico[k])::bigint;
            taken_tokens := taken_tokens || least(hold.tokens_held, cap_tokens[k])::bigint;
            IF taken_pico[cardinality(taken_pico)] > room_pico[k] - more_pico[k]
               OR taken_tokens[cardinality(taken_tokens)] > room_tokens[k] - more_tokens[k] THEN
                refused := k;
                EXIT;
            END IF;
        END LOOP;
        IF refused IS NOT NULL THEN
            outcome := billing_refusal(
                w_id[refused], more_pico[refused], more_tokens[refused],
                taken_pico[cardinality(taken_pico)], taken_tokens[cardinality(taken_tokens)]);
            RETURN NEXT;
            CONTINUE;
        END IF;
        FOR n IN 1 .. cardinality(hold.over) LOOP
            k := hold.over[n];
            more_pico[k] := more_pico[k] + taken_pico[n];
            more_tokens[k] := more_tokens[k] + taken_tokens[n];
        END LOOP;
        INSERT INTO billing_hold (
            request_id, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
            tokens_in_text, tokens_in_image, tokens_out_max, tokens_held, amount_pico, canvases, streamed,
            process_id, window_ids, window_pico, window_tokens, held_at, expires_at)
        VALUES (
            hold.request_id, hold.organization_id, hold.team_id, hold.key_id, hold.model_name, hold.backend_name,
            hold.price_id, hold.received_at, hold.tokens_in_text, hold.tokens_in_image, hold.tokens_out_max,
            hold.tokens_held, hold.amount_pico, hold.canvases, hold.streamed, hold.process_id,
            (SELECT coalesce(array_agg(w_id[n] ORDER BY o), '{}') FROM unnest(hold.over) WITH ORDINALITY AS u (n, o)),
            taken_pico, taken_tokens, at, hold.expires_at);
        RETURN NEXT;
    END LOOP;

    UPDATE billing_budgetwindow w
    SET held_pico = w.held_pico + more.pico, held_tokens = w.held_tokens + more.tokens
    FROM unnest(w_id, more_pico, more_tokens) more (id, pico, tokens)
    WHERE w.id = more.id AND more.tokens > 0;
END $$;

CREATE FUNCTION billing_refusal(
    window_id bigint, more_pico numeric, more_tokens numeric, needed_pico bigint, needed_tokens bigint)
RETURNS text LANGUAGE sql AS $$
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
$$;
"""

# Moves money in windows: what leaves `held`, and what is added to `spent`. The arrays run side by side, and a
# window may occur many times.
MOVE = """
CREATE FUNCTION billing_move(
    windows bigint[], unheld_pico bigint[], unheld_tokens bigint[], spent_pico bigint[], spent_tokens bigint[])
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM billing_budgetwindow w WHERE w.id = ANY(windows) ORDER BY w.id FOR UPDATE;
    UPDATE billing_budgetwindow w
    SET held_pico = w.held_pico - moved.unheld_pico, held_tokens = w.held_tokens - moved.unheld_tokens,
        spent_pico = w.spent_pico + moved.spent_pico, spent_tokens = w.spent_tokens + moved.spent_tokens
    FROM (
        SELECT id, sum(m.unheld_pico) AS unheld_pico, sum(m.unheld_tokens) AS unheld_tokens,
               sum(m.spent_pico) AS spent_pico, sum(m.spent_tokens) AS spent_tokens
        FROM unnest(windows, unheld_pico, unheld_tokens, spent_pico, spent_tokens)
             m (id, unheld_pico, unheld_tokens, spent_pico, spent_tokens)
        GROUP BY id) moved
    WHERE w.id = moved.id;
END $$;
"""

# A hold is claimed by its deletion, so that one of several settlings writes, whoever comes. A settling that finds its
# request reaped already writes the difference to what was estimated, as an adjustment.
SETTLE = """
CREATE OR REPLACE FUNCTION billing_settle_batch(rows json)
RETURNS TABLE (request_id uuid, outcome text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    at timestamptz := clock_timestamp();
    settled int;
    windows bigint[];
    unheld_pico bigint[];
    unheld_tokens bigint[];
    spent_pico bigint[];
    spent_tokens bigint[];
BEGIN
    PERFORM FROM billing_hold
    WHERE request_id IN (SELECT (r ->> 'request_id')::uuid FROM json_array_elements(rows) r)
    ORDER BY request_id FOR UPDATE;

    WITH incoming AS MATERIALIZED (
        SELECT * FROM json_populate_recordset(NULL::billing_usagerecord, rows)),
    gone AS (
        DELETE FROM billing_hold h USING incoming i WHERE h.request_id = i.request_id
        RETURNING h.request_id, h.held_at, h.window_ids, h.window_pico, h.window_tokens),
    written AS (
        INSERT INTO billing_usagerecord (
            request_id, kind, organization_id, team_id, key_id, model_name, backend_name, price_id, received_at,
            tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
            status, usage_source, policy, counted_prompt, counted_out, upstream_prompt, upstream_out,
            upstream_cached, upstream_id, canvases, streamed, window_ids, held_at, first_byte_at, finished_at,
            recorded_at)
        SELECT
            i.request_id, 'usage', i.organization_id, i.team_id, i.key_id, i.model_name, i.backend_name, i.price_id,
            i.received_at, i.tokens_in_text, i.tokens_in_image, i.tokens_in_cached, i.tokens_out, i.amount_pico,
            i.held_pico, i.status, i.usage_source, i.policy, i.counted_prompt, i.counted_out, i.upstream_prompt,
            i.upstream_out, i.upstream_cached, i.upstream_id, i.canvases, i.streamed,
            coalesce(g.window_ids, billing_windows_over(i.organization_id, i.team_id, i.key_id, at)),
            coalesce(g.held_at, at), i.first_byte_at, i.finished_at, at
        FROM incoming i LEFT JOIN gone g ON g.request_id = i.request_id
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
    IF settled < json_array_length(rows) THEN
        PERFORM billing_adjust(rows, at);
    END IF;
    RETURN QUERY
    SELECT (r ->> 'request_id')::uuid, CASE r ->> 'status' WHEN 'void' THEN 'void' ELSE 'recorded' END
    FROM json_array_elements(rows) r;
END $$;

CREATE FUNCTION billing_windows_over(organization bigint, team bigint, key bigint, at timestamptz)
RETURNS bigint[] LANGUAGE sql STABLE AS $$
    SELECT coalesce(array_agg(w.id ORDER BY w.id), '{}')
    FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
    WHERE b.is_active AND b.organization_id = organization AND (b.team_id IS NULL OR b.team_id = team)
      AND (b.key_id IS NULL OR b.key_id = key)
      AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity')
$$;
"""

# The id keeps the original's time, so that it sorts beside it, and can occur once.
ADJUST = """
CREATE FUNCTION billing_adjust(rows json, at timestamptz) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    windows bigint[];
    zeros bigint[];
    pico bigint[];
    tokens bigint[];
BEGIN
    WITH written AS (
        INSERT INTO billing_usagerecord (
            request_id, kind, adjusts_id, organization_id, team_id, key_id, model_name, backend_name, price_id,
            received_at, tokens_in_text, tokens_in_image, tokens_in_cached, tokens_out, amount_pico, held_pico,
            status, usage_source, policy, counted_prompt, counted_out, upstream_prompt, upstream_out, upstream_cached,
            upstream_id, canvases, streamed, window_ids, held_at, first_byte_at, finished_at, recorded_at)
        SELECT
            overlay(md5(old.request_id::text || 'adjustment') placing left(replace(old.request_id::text, '-', ''), 13)
                    from 1)::uuid,
            'adjustment', old.request_id, old.organization_id, old.team_id, old.key_id, old.model_name,
            old.backend_name, old.price_id, old.received_at,
            coalesce(late.tokens_in_text, 0) - old.tokens_in_text,
            coalesce(late.tokens_in_image, 0) - old.tokens_in_image,
            coalesce(late.tokens_in_cached, 0) - old.tokens_in_cached,
            coalesce(late.tokens_out, 0) - old.tokens_out,
            coalesce(late.amount_pico, 0) - old.amount_pico, 0,
            CASE late.status WHEN 'void' THEN 'ok' ELSE late.status END,
            coalesce(late.usage_source, 'counted'), coalesce(late.policy, old.policy), old.counted_prompt,
            late.counted_out, late.upstream_prompt, late.upstream_out, late.upstream_cached,
            coalesce(late.upstream_id, ''), old.canvases, old.streamed, old.window_ids, old.held_at,
            late.first_byte_at, coalesce(late.finished_at, at), at
        FROM json_populate_recordset(NULL::billing_usagerecord, rows) late
        JOIN billing_usagerecord old ON old.request_id = late.request_id AND old.status = 'expired'
        ON CONFLICT (request_id) DO NOTHING
        RETURNING window_ids, amount_pico,
                  tokens_in_text + tokens_in_image + tokens_in_cached + tokens_out AS tokens)
    SELECT array_agg(u.id), array_agg(0::bigint), array_agg(amount_pico), array_agg(written.tokens)
    INTO windows, zeros, pico, tokens
    FROM written, unnest(window_ids) u (id);
    IF windows IS NOT NULL THEN
        PERFORM billing_move(windows, zeros, zeros, pico, tokens);
    END IF;
END $$;
"""

# A process that has not been heard of for dead_after is dead, unless PostgreSQL itself was away until just now.
REAP = """
CREATE FUNCTION billing_reap(dead_after interval, rows_max integer) RETURNS integer LANGUAGE plpgsql AS $$
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
            finished_at, recorded_at)
        SELECT
            g.request_id, 'usage', g.organization_id, g.team_id, g.key_id, g.model_name, g.backend_name, g.price_id,
            g.received_at, g.tokens_in_text, g.tokens_in_image, 0, 0,
            CASE organization.bills_lost WHEN 'nothing' THEN 0 ELSE
                g.tokens_in_text * p.text_in_micro + g.tokens_in_image * p.image_in_micro + p.request_micro * 1000000 END,
            g.amount_pico, 'expired', 'estimated', organization.bills_lost, g.tokens_in_text + g.tokens_in_image, '',
            g.canvases, g.streamed, g.window_ids, g.held_at, at, at
        FROM gone g
        JOIN billing_price p ON p.id = g.price_id
        JOIN tenants_organization organization ON organization.id = g.organization_id
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
END $$;
"""

GUARD = """
CREATE FUNCTION billing_keep_budget_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a budget keeps its owner and its period: set a new one'
        USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER keep_owner BEFORE UPDATE ON billing_budget FOR EACH ROW
    WHEN ((OLD.organization_id, OLD.team_id, OLD.key_id, OLD.period)
          IS DISTINCT FROM (NEW.organization_id, NEW.team_id, NEW.key_id, NEW.period))
    EXECUTE FUNCTION billing_keep_budget_owner();
ALTER TABLE billing_budgetwindow SET (fillfactor = 50);
"""


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0003_budgets"),
        ("tenants", "0005_what_broken_answers_cost"),
    ]

    operations = [
        migrations.RunSQL("DROP FUNCTION billing_expire_holds(integer)"),
        migrations.RunSQL(WINDOWS),
        migrations.RunSQL(MOVE),
        migrations.RunSQL(RESERVE),
        migrations.RunSQL(SETTLE),
        migrations.RunSQL(ADJUST),
        migrations.RunSQL(REAP),
        migrations.RunSQL(GUARD),
    ]
