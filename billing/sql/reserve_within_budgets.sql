CREATE OR REPLACE FUNCTION public.billing_reserve_within_budgets(incoming billing_hold[], at timestamp with time zone)
 RETURNS TABLE(request_id uuid, outcome text)
 LANGUAGE plpgsql
AS $function$
#variable_conflict use_column
DECLARE
    organizations bigint[];
    teams bigint[];
    keys bigint[];
    hold record;
    k int;
    refused int;
    taken_pico bigint[];
    taken_tokens bigint[];
    -- One element for each window that stands over any of these requests; room and cap are NULL where the budget
    -- does not limit that.
    w_id bigint[];
    w_organization bigint[];
    w_team bigint[];
    w_key bigint[];
    room_pico numeric[];
    room_tokens numeric[];
    cap_pico numeric[];
    cap_tokens numeric[];
    more_pico numeric[];
    more_tokens numeric[];
BEGIN
    SELECT array_agg(DISTINCT organization_id), array_agg(DISTINCT team_id), array_agg(DISTINCT key_id)
    INTO organizations, teams, keys FROM unnest(incoming);

    IF EXISTS (
        SELECT FROM billing_budget b
        WHERE b.is_active AND b.organization_id = ANY(organizations)
          AND (b.team_id IS NULL OR b.team_id = ANY(teams)) AND (b.key_id IS NULL OR b.key_id = ANY(keys))
          AND NOT EXISTS (
              SELECT FROM billing_budgetwindow w
              WHERE w.budget_id = b.id AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity')))
    THEN
        PERFORM billing_open_windows(organizations, teams, keys, at);
    END IF;
    SELECT coalesce(array_agg(id), '{}'), array_agg(organization_id), array_agg(team_id), array_agg(key_id),
           array_agg(s.room_pico), array_agg(s.room_tokens), array_agg(s.cap_pico), array_agg(s.cap_tokens),
           array_agg(0::numeric), array_agg(0::numeric)
    INTO w_id, w_organization, w_team, w_key, room_pico, room_tokens, cap_pico, cap_tokens, more_pico, more_tokens
    FROM (
        SELECT w.id, b.organization_id, b.team_id, b.key_id,
               b.limit_micro::numeric * 1000000 - w.spent_pico - w.held_pico AS room_pico,
               (b.limit_tokens - w.spent_tokens - w.held_tokens)::numeric AS room_tokens,
               b.hold_micro_max::numeric * 1000000 AS cap_pico, b.hold_tokens_max::numeric AS cap_tokens
        FROM billing_budgetwindow w JOIN billing_budget b ON b.id = w.budget_id
        WHERE b.is_active AND b.organization_id = ANY(organizations)
          AND (b.team_id IS NULL OR b.team_id = ANY(teams)) AND (b.key_id IS NULL OR b.key_id = ANY(keys))
          AND w.starts_at <= at AND at < coalesce(w.ends_at, 'infinity')
        ORDER BY w.id FOR UPDATE OF w) s;

    FOR hold IN
        SELECT i.*, (
            SELECT coalesce(array_agg(o.n ORDER BY o.n), '{}')
            FROM unnest(w_organization, w_team, w_key) WITH ORDINALITY o (organization_id, team_id, key_id, n)
            WHERE o.organization_id = i.organization_id
              AND (o.team_id IS NULL OR o.team_id = i.team_id)
              AND (o.key_id IS NULL OR o.key_id = i.key_id)) AS over
        FROM unnest(incoming) i
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
END $function$;
